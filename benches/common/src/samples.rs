//! Order statistics.

/// Measurements of one kind. All are kept: percentiles are exact.
#[derive(Clone, Debug, Default)]
pub struct Samples(Vec<u64>);

impl Samples {
    /// None yet, with room for `count`.
    pub fn with_capacity(count: usize) -> Self {
        Samples(Vec::with_capacity(count))
    }

    /// One more.
    #[inline]
    pub fn push(&mut self, value: u64) {
        self.0.push(value);
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The value below or at which `percent` of the samples are; 0 of none.
    pub fn percentile(&mut self, percent: u32) -> u64 {
        if self.0.is_empty() {
            return 0;
        }
        let rank = (self.0.len() * percent.min(100) as usize).div_ceil(100);
        *self.0.select_nth_unstable(rank.saturating_sub(1)).1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_values_that_were_measured() {
        let mut samples = Samples::default();
        assert_eq!(samples.percentile(50), 0);
        for value in (1..=100).rev() {
            samples.push(value);
        }
        assert_eq!(samples.percentile(50), 50);
        assert_eq!(samples.percentile(99), 99);
        assert_eq!(samples.percentile(100), 100);
        assert_eq!(samples.percentile(0), 1);
    }
}
