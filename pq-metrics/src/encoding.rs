//! Encoding series of numbers.

use std::fmt;

use pq_diesel::admin::Histogram;
use prometheus_client::encoding::{
    DescriptorEncoder, EncodeLabelValue, LabelValueEncoder, MetricEncoder, NoLabelSet,
};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Unit;

/// The value of a label. Names of queues may contain anything, and the encoder of the crate escapes nothing.
#[derive(Debug)]
pub(crate) struct Label<'a>(pub(crate) &'a str);

impl EncodeLabelValue for Label<'_> {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
        use fmt::Write;
        for character in self.0.chars() {
            match character {
                '\\' => encoder.write_str("\\\\")?,
                '"' => encoder.write_str("\\\"")?,
                '\n' => encoder.write_str("\\n")?,
                other => encoder.write_char(other)?,
            }
        }
        Ok(())
    }
}

/// Writes metrics, each with all of its series.
pub(crate) struct Writer<'e> {
    encoder: DescriptorEncoder<'e>,
}

impl<'e> Writer<'e> {
    pub(crate) fn new(encoder: DescriptorEncoder<'e>) -> Self {
        Self { encoder }
    }

    /// Writes a gauge without labels.
    pub(crate) fn gauge(&mut self, name: &str, help: &str, value: f64) -> fmt::Result {
        self.encoder.encode_descriptor(name, help, None, MetricType::Gauge)?.encode_gauge(&value)
    }

    /// Writes a gauge with one series for each set of labels.
    pub(crate) fn gauges<'a, const N: usize>(
        &mut self,
        name: &str,
        help: &str,
        series: impl IntoIterator<Item = ([(&'static str, &'a str); N], f64)>,
    ) -> fmt::Result {
        let mut metric = self.encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for (labels, value) in series {
            with_labels(&mut metric, labels, |one| one.encode_gauge(&value))?;
        }
        Ok(())
    }

    /// Writes a counter without labels.
    pub(crate) fn counter(&mut self, name: &str, help: &str, value: u64) -> fmt::Result {
        self.encoder
            .encode_descriptor(name, help, None, MetricType::Counter)?
            .encode_counter::<NoLabelSet, _, u64>(&value, None)
    }

    /// Writes a counter with one series for each set of labels.
    pub(crate) fn counters<'a, const N: usize>(
        &mut self,
        name: &str,
        help: &str,
        series: impl IntoIterator<Item = ([(&'static str, &'a str); N], u64)>,
    ) -> fmt::Result {
        let mut metric = self.encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        for (labels, value) in series {
            with_labels(&mut metric, labels, |one| one.encode_counter::<NoLabelSet, _, u64>(&value, None))?;
        }
        Ok(())
    }

    /// Writes a histogram of seconds with one series for each set of labels.
    pub(crate) fn histograms<'a, const N: usize>(
        &mut self,
        name: &str,
        help: &str,
        series: impl IntoIterator<Item = ([(&'static str, &'a str); N], Histogram)>,
    ) -> fmt::Result {
        let seconds = Unit::Seconds;
        let mut metric = self.encoder.encode_descriptor(name, help, Some(&seconds), MetricType::Histogram)?;
        for (labels, histogram) in series {
            // The crate writes the largest number as +Inf.
            let bounds = Histogram::BOUNDS_MS.iter().map(|bound| *bound as f64 / 1_000.0).chain([f64::MAX]);
            let buckets: Vec<(f64, u64)> = bounds.zip(histogram.counts().iter().copied()).collect();
            let (sum, count) = (histogram.sum().as_secs_f64(), histogram.count());
            with_labels(&mut metric, labels, |one| {
                one.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)
            })?;
        }
        Ok(())
    }
}

fn with_labels<const N: usize>(
    metric: &mut MetricEncoder<'_>,
    labels: [(&'static str, &str); N],
    encode: impl FnOnce(&mut MetricEncoder<'_>) -> fmt::Result,
) -> fmt::Result {
    let labels = labels.map(|(name, value)| (name, Label(value)));
    encode(&mut metric.encode_family(&labels)?)
}
