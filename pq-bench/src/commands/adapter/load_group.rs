//! Puts jobs that are scheduled for later.

use std::sync::PoisonError;
use std::time::Instant;

use anyhow::{Context, Result};
use chrono::DateTime;
use pq_diesel::PutOptions;

use super::Run;
use super::controls::{LoadGroup, POLL_INTERVAL, Watched};
use super::producer::AFTER_FAILURE;
use super::work::{Work, now_us};

/// Puts each load group that the harness requests, until shutdown.
pub(super) fn run(run: &Run) {
    let mut requested: Watched<'_, LoadGroup> = Watched::new(run.settings.schedule_file.as_deref());
    let mut last = String::new();
    while !run.shutdown.sleep(POLL_INTERVAL) {
        let Some(load_group) = requested.now().filter(|load_group| load_group.id != last) else { continue };
        last.clone_from(&load_group.id);
        if let Err(error) = put(run, &load_group) {
            eprintln!("cannot put load group {:?}: {error}", load_group.id);
        }
    }
}

fn put(run: &Run, load_group: &LoadGroup) -> Result<()> {
    let pattern = Work::of(run.settings.payload, run.settings.random)?;
    let (begun, mut seq) = (Instant::now(), 0);
    *run.figures.load_group.took.lock().unwrap_or_else(PoisonError::into_inner) = None;
    for (batch, (size, run_at_ms)) in load_group.batches().enumerate() {
        let at = DateTime::from_timestamp_millis(run_at_ms).context("its run_at_ms is out of range")?;
        let options = PutOptions::new().schedule_at(at);
        let (put_at_us, run_at_ms) = (now_us(), Some(run_at_ms));
        let works: Vec<Work> =
            (seq..seq + size).map(|seq| Work { seq, put_at_us, run_at_ms, ..pattern.clone() }).collect();
        let queue = &run.queues[batch % run.queues.len()];
        // Figures of an incomplete load group are worthless, so a failed put is repeated.
        while let Err(error) = queue.put_many_with(works.iter().map(|work| (work, &options))) {
            eprintln!("cannot put jobs of load group {:?}: {error}", load_group.id);
            if run.shutdown.sleep(AFTER_FAILURE) {
                return Ok(());
            }
        }
        seq += size;
        run.figures.load_group.put.add(size);
        if run.shutdown.is_requested() {
            return Ok(());
        }
    }
    *run.figures.load_group.took.lock().unwrap_or_else(PoisonError::into_inner) = Some(begun.elapsed());
    eprintln!("put load group {:?}: {seq} jobs", load_group.id);
    Ok(())
}
