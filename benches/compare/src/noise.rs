//! Who else used the CPUs meanwhile: without knowing that, figures of a shared machine are worth little.
use std::fmt;

use anyhow::Context as _;
use serde::Serialize;

/// Percent of the CPUs from which on figures are told to be a busy machine's.
const BUSY: f64 = 5.0;

/// Percent of all CPUs' time.
#[derive(Copy, Clone, Debug, Serialize)]
pub struct Noise {
    /// Used by processes that are none of ours.
    pub others: f64,
    /// Not given to this virtual machine by what it runs on.
    pub stolen: f64,
    /// Enough of either to doubt the figures.
    pub busy: bool,
}

impl fmt::Display for Noise {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Noise { others, stolen, busy } = self;
        let verdict = if *busy { "BUSY" } else { "quiet" };
        write!(
            f,
            "{verdict}: other processes had {others:.1} % of the CPUs meanwhile, {stolen:.1} % were stolen"
        )
    }
}

/// A time, by what has been used until then, in ticks.
pub struct Moment {
    used: u64,
    stolen: u64,
    all: u64,
    own: u64,
}

impl Moment {
    /// Now. Of children only those count that have been waited for.
    pub fn now() -> anyhow::Result<Self> {
        let stat = std::fs::read_to_string("/proc/stat").context("/proc/stat")?;
        let (used, stolen, all) = ticks(&stat).context("/proc/stat has no line of all CPUs")?;
        let own = std::fs::read_to_string("/proc/self/stat").context("/proc/self/stat")?;
        Ok(Moment {
            used,
            stolen,
            all,
            own: own_ticks(&own).context("/proc/self/stat has no times")?,
        })
    }

    /// What has happened since.
    pub fn noise_since(&self) -> anyhow::Result<Noise> {
        let now = Moment::now()?;
        let all = (now.all - self.all).max(1) as f64;
        let used = (now.used - self.used) as f64 - (now.own - self.own) as f64;
        let others = 100.0 * used.max(0.0) / all;
        let stolen = 100.0 * (now.stolen - self.stolen) as f64 / all;
        Ok(Noise {
            others: rnic_bench::rounded(others),
            stolen: rnic_bench::rounded(stolen),
            busy: others + stolen > BUSY,
        })
    }
}

/// Ticks of all CPUs in which programs ran, which were stolen, and all. Interrupts are left out: they belong to nobody.
fn ticks(stat: &str) -> Option<(u64, u64, u64)> {
    let line = stat.lines().find_map(|line| line.strip_prefix("cpu "))?;
    let fields: Vec<u64> = line
        .split_whitespace()
        .map_while(|word| word.parse().ok())
        .collect();
    // user, nice, system, idle, iowait, irq, softirq, steal; guests are in user and nice already.
    let fields = fields.get(..8)?;
    Some((fields[..3].iter().sum(), fields[7], fields.iter().sum()))
}

/// Ticks of this process and of its children that have ended.
fn own_ticks(stat: &str) -> Option<u64> {
    // The name, which may contain anything, ends at the last parenthesis; 11 fields lie between it and the four.
    let (_, fields) = stat.rsplit_once(')')?;
    let times = fields.split_whitespace().skip(11).take(4);
    times.map(|word| word.parse::<u64>().ok()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_found_in_the_files_of_the_kernel() {
        let stat = "cpu  10 20 30 400 50 6 7 8 9 10\ncpu0 1 1 1 1 1 1 1 1 1 1\n";
        assert_eq!(ticks(stat), Some((60, 8, 531)));
        assert_eq!(ticks("intr 5"), None);
        let own = "7 (a) b) R 1 7 7 0 -1 4194304 100 0 0 0 11 12 13 14 20 0 1 0";
        assert_eq!(own_ticks(own), Some(50));
    }
}
