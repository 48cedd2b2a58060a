//! Medians and percentiles.

/// Returns the median, or 0 if there are no figures.
#[must_use]
pub fn median(figures: &[f64]) -> f64 {
    percentile(figures, 50.0)
}

/// Returns the percentile by nearest rank, or 0 if there are no figures.
#[must_use]
pub fn percentile(figures: &[f64], percent: f64) -> f64 {
    let mut sorted = figures.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (percent / 100.0 * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_use_the_nearest_rank() {
        let figures: Vec<f64> = (1..=100).map(f64::from).collect();
        assert_eq!((median(&figures), percentile(&figures, 99.0)), (50.0, 99.0));
        assert_eq!((median(&[3.0, 1.0, 2.0]), median(&[])), (2.0, 0.0));
    }
}
