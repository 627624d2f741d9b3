//! Statistics of samples.

/// Sorted samples, in nanoseconds.
pub struct Stats(Vec<u64>);

impl Stats {
    pub fn new(mut samples: Vec<u64>) -> Stats {
        samples.sort_unstable();
        Stats(samples)
    }

    /// The smallest sample that `share` of all (0 to 1) do not exceed; 0 without samples.
    pub fn quantile(&self, share: f64) -> u64 {
        let rank = (share * self.0.len() as f64).ceil() as usize;
        self.0
            .get(rank.saturating_sub(1).min(self.0.len().saturating_sub(1)))
            .copied()
            .unwrap_or(0)
    }

    pub fn min(&self) -> u64 {
        self.quantile(0.0)
    }

    pub fn max(&self) -> u64 {
        self.quantile(1.0)
    }

    pub fn mean(&self) -> f64 {
        self.0.iter().map(|sample| *sample as f64).sum::<f64>() / self.0.len().max(1) as f64
    }

    pub fn stdev(&self) -> f64 {
        let mean = self.mean();
        let squares: f64 = self.0.iter().map(|sample| (*sample as f64 - mean).powi(2)).sum();
        (squares / self.0.len().max(1) as f64).sqrt()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_samples() {
        let stats = Stats::new((1..=1000).rev().collect());
        assert_eq!((stats.min(), stats.max()), (1, 1000));
        assert_eq!(
            [0.5, 0.99, 0.999].map(|share| stats.quantile(share)),
            [500, 990, 999]
        );
        assert_eq!(stats.mean(), 500.5);
        assert!((stats.stdev() - 288.67).abs() < 0.01);
        assert_eq!(Stats::new(vec![]).quantile(0.99), 0);
        assert_eq!(Stats::new(vec![7]).quantile(0.5), 7);
    }
}
