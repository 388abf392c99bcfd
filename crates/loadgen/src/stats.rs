//! Percentiles and rounding for the report.

/// Microseconds at quantile `q` (0.0 to 1.0) of sorted nanoseconds, nearest rank; NaN, which JSON writes as null, of none.
pub fn quantile(sorted: &[u64], q: f64) -> f64 {
    let rank = (sorted.len() as f64 * q).ceil() as usize;
    match sorted.get(rank.saturating_sub(1).min(sorted.len().saturating_sub(1))) {
        Some(nanoseconds) => round(*nanoseconds as f64 / 1000.0, 1),
        None => f64::NAN,
    }
}

/// `value` with `digits` decimals.
pub fn round(value: f64, digits: i32) -> f64 {
    let factor = 10_f64.powi(digits);
    (value * factor).round() / factor
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_nearest_rank() {
        let sorted: Vec<u64> = (1..=100).map(|n| n * 1000).collect();
        assert_eq!(quantile(&sorted, 0.5), 50.0);
        assert_eq!(quantile(&sorted, 0.99), 99.0);
        assert_eq!(quantile(&sorted, 1.0), 100.0);
        assert_eq!(quantile(&[7000], 0.5), 7.0);
        assert!(quantile(&[], 0.5).is_nan());
    }
}
