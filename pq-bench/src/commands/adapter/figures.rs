//! Counters and latencies that all threads record.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::Result;
use hdrhistogram::Histogram;

/// Latencies of the last 30 seconds, or of as many whole samples as fit, at least one.
pub(super) struct Window {
    slots: Mutex<VecDeque<Histogram<u32>>>,
    pub(super) length: Duration,
}

impl Window {
    const LENGTH: Duration = Duration::from_secs(30);

    pub(super) fn new(sample_every: Duration) -> Result<Self> {
        let slots = (Self::LENGTH.as_secs() / sample_every.as_secs().max(1)).max(1);
        let made: Result<_, _> = (0..slots).map(|_| histogram()).collect();
        Ok(Self { slots: Mutex::new(made?), length: sample_every * u32::try_from(slots)? })
    }

    pub(super) fn record(&self, latency: Duration, times: u32) {
        self.record_us(i64::try_from(latency.as_micros()).unwrap_or(i64::MAX), times);
    }

    /// Records a latency in microseconds. A negative one comes from clocks that differ, and counts as 0.
    pub(super) fn record_us(&self, latency: i64, times: u32) {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(slot) = slots.back_mut() {
            slot.saturating_record_n(latency.max(0).unsigned_abs(), times);
        }
    }

    /// Returns the latencies of the window that ends now, and starts the next sample.
    pub(super) fn rotate(&self) -> Result<Percentiles> {
        let mut all = histogram()?;
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        for slot in slots.iter() {
            all.add(slot)?;
        }
        slots.rotate_left(1);
        if let Some(slot) = slots.back_mut() {
            slot.reset();
        }
        Ok(Percentiles(all))
    }
}

/// Creates a histogram from 1 µs to one hour, with three significant digits.
pub(super) fn histogram() -> Result<Histogram<u32>> {
    Ok(Histogram::new_with_bounds(1, 3_600_000_000, 3)?)
}

/// Latencies in microseconds, read in milliseconds. Percentiles of no latencies are 0.
pub(super) struct Percentiles(pub(super) Histogram<u32>);

impl Percentiles {
    pub(super) fn at(&self, quantile: f64) -> f64 {
        self.0.value_at_quantile(quantile) as f64 / 1_000.0
    }
}

/// Numbers of jobs by state, over all queues.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Depth {
    pub(super) ready: u64,
    pub(super) running: u64,
    pub(super) scheduled: u64,
}

/// A counter.
#[derive(Default)]
pub(super) struct Count(AtomicU64);

impl Count {
    pub(super) fn add(&self, some: u64) {
        self.0.fetch_add(some, Ordering::Relaxed);
    }

    pub(super) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

pub(super) struct Figures {
    pub(super) put: Count,
    pub(super) completed: Count,
    /// Latency of each call that puts a batch.
    pub(super) call: Window,
    /// The same, per job.
    pub(super) producer: Window,
    /// From the start of the put to the start of the handler.
    pub(super) claim: Window,
    /// From the start of the put to the end of the handler.
    pub(super) end_to_end: Window,
    pub(super) failed: Count,
    pub(super) retried: Count,
    pub(super) exhausted: Count,
    pub(super) load_group: LoadGroupFigures,
    depth: Mutex<Depth>,
    target: Mutex<f64>,
}

/// Counts and latencies of the load group.
pub(super) struct LoadGroupFigures {
    pub(super) put: Count,
    pub(super) begun: Count,
    pub(super) early: Count,
    pub(super) completed: Count,
    /// In microseconds, since the start of the run.
    pub(super) lateness: Mutex<Histogram<u32>>,
    pub(super) took: Mutex<Option<Duration>>,
}

impl Figures {
    pub(super) fn new(sample_every: Duration) -> Result<Self> {
        Ok(Self {
            put: Count::default(),
            completed: Count::default(),
            call: Window::new(sample_every)?,
            producer: Window::new(sample_every)?,
            claim: Window::new(sample_every)?,
            end_to_end: Window::new(sample_every)?,
            failed: Count::default(),
            retried: Count::default(),
            exhausted: Count::default(),
            load_group: LoadGroupFigures {
                put: Count::default(),
                begun: Count::default(),
                early: Count::default(),
                completed: Count::default(),
                lateness: Mutex::new(histogram()?),
                took: Mutex::default(),
            },
            depth: Mutex::default(),
            target: Mutex::default(),
        })
    }

    pub(super) fn depth(&self) -> Depth {
        *self.depth.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn observed(&self, depth: Depth) {
        *self.depth.lock().unwrap_or_else(PoisonError::into_inner) = depth;
    }

    /// Returns the target rate of the producer.
    pub(super) fn target(&self) -> f64 {
        *self.target.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn set_target(&self, rate: f64) {
        *self.target.lock().unwrap_or_else(PoisonError::into_inner) = rate;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_drops_old_latencies() -> Result<()> {
        let window = Window::new(Duration::from_secs(10))?;
        assert_eq!(window.length, Duration::from_secs(30));
        window.record(Duration::from_millis(7), 1);
        for _ in 0..3 {
            assert!((window.rotate()?.at(0.99) - 7.0).abs() < 0.01);
        }
        assert_eq!(window.rotate()?.at(0.99), 0.0);
        window.record_us(-5, 3);
        assert_eq!(window.rotate()?.at(0.5), 0.0);
        assert_eq!(Window::new(Duration::from_secs(45))?.length, Duration::from_secs(45));
        assert_eq!(Window::new(Duration::from_secs(7))?.length, Duration::from_secs(28));
        Ok(())
    }

    #[test]
    fn percentiles_cover_all_recorded_latencies() -> Result<()> {
        let window = Window::new(Duration::from_secs(5))?;
        for ms in 1..=100 {
            window.record(Duration::from_millis(ms), 2);
        }
        let all = window.rotate()?;
        for (quantile, wanted) in [(0.5, 50.0), (0.95, 95.0), (0.99, 99.0)] {
            assert!((all.at(quantile) - wanted).abs() < 0.1, "{}", all.at(quantile));
        }
        Ok(())
    }
}
