//! The matrix as a table, and as JSON.
use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use rnic_trace::{Options, Violation, check_file};
use serde::Serialize;

use crate::matrix::Outcome;
use crate::wire::Wire;

/// A whole run.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Package of the guest's kernel.
    pub kernel: String,
    /// Seed of the data.
    pub seed: u64,
    /// Every case.
    pub outcomes: Vec<Outcome>,
    /// What the checker of captures says.
    pub traces: Vec<Trace>,
    /// Complaints of the guest's kernel.
    pub complaints: Vec<String>,
}

impl Report {
    /// Cases that failed.
    pub fn failures(&self) -> impl Iterator<Item = &Outcome> {
        self.outcomes.iter().filter(|outcome| outcome.error.is_some())
    }

    /// Writes it as JSON.
    pub fn write(&self, file: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self)?;
        std::fs::write(file, text).with_context(|| file.display().to_string())
    }

    /// A line for each test, direction and family, a column for each wire: at how many path MTUs it was right.
    pub fn table(&self) -> String {
        let mut rows: Vec<Row<'_>> = self.outcomes.iter().map(Row::of).collect();
        // In the order of the matrix.
        let first = |row: &Row<'_>| self.outcomes.iter().position(|outcome| outcome.test == row.test);
        rows.sort_by_key(|row| (first(row), row.direction, row.family));
        rows.dedup();
        let mut text = format!("{:<16} {:<11} {:<3}", "", "", "IP");
        for wire in &Wire::ALL {
            text += &format!(" {:>10}", wire.name);
        }
        for row in rows {
            let Row {
                test,
                direction,
                family,
            } = row;
            text += &format!("\n{test:<16} {direction:<11} {family:<3}");
            for wire in &Wire::ALL {
                let cell = self
                    .outcomes
                    .iter()
                    .filter(|o| Row::of(o) == row && o.wire == wire.name);
                let (right, wrong): (Vec<_>, Vec<_>) = cell.partition(|outcome| outcome.error.is_none());
                let cell = match (right.len(), wrong.len()) {
                    (0, 0) => "·".into(),
                    (right, 0) => format!("ok {right}"),
                    (right, wrong) => format!("FAIL {wrong}/{}", right + wrong),
                };
                text += &format!(" {cell:>10}");
            }
        }
        let sum = |of: fn(&Outcome) -> u64| self.outcomes.iter().map(of).sum::<u64>();
        text + &format!(
            "\n\n{} cases, {} requests, {} bytes compared; frames lost: {} from the guest, {} to it; {} s; {}",
            self.outcomes.len(),
            sum(|o| o.messages),
            sum(|o| o.bytes),
            sum(|o| o.lost[0]),
            sum(|o| o.lost[1]),
            sum(|o| o.milliseconds) / 1000,
            self.kernel,
        )
    }
}

/// What `rnic-trace` finds in the capture of a wire, which sees frames as `rnicd` sends and receives them.
#[derive(Debug, Serialize)]
pub struct Trace {
    /// The wire.
    pub wire: &'static str,
    /// The capture.
    pub file: PathBuf,
    /// RoCEv2 frames in it.
    pub frames: usize,
    /// Connections in it.
    pub connections: usize,
    /// Violations of rules by what `rnicd` sent.
    pub ours: Vec<String>,
    /// Those by the kernel.
    pub theirs: Vec<String>,
}

impl Trace {
    /// Checks a capture.
    pub fn of(wire: &Wire, file: &Path) -> Result<Trace> {
        let report = check_file(file, &Options::default()).with_context(|| file.display().to_string())?;
        let (ours, theirs): (Vec<_>, Vec<_>) = report.violations.iter().partition(|violation| violation.ours);
        let text = |list: Vec<&Violation>| list.into_iter().map(Violation::to_string).collect();
        Ok(Trace {
            wire: wire.name,
            file: file.into(),
            frames: report.roce,
            connections: report.connections,
            ours: text(ours),
            theirs: text(theirs),
        })
    }
}

impl fmt::Display for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Trace {
            wire,
            file,
            frames,
            connections,
            ours,
            theirs,
        } = self;
        write!(
            f,
            "{}: {wire}: {frames} frames of {connections} connections, {} violations by rnic, {} by rxe",
            file.display(),
            ours.len(),
            theirs.len()
        )?;
        // The first of many say enough.
        let named = |who, list: &[String]| {
            list.iter()
                .take(10)
                .map(move |text| format!("\n  {who}: {text}"))
                .collect::<String>()
        };
        write!(f, "{}{}", named("rnic", ours), named("rxe", theirs))
    }
}

/// A line of the table.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
struct Row<'a> {
    test: &'a str,
    direction: &'a str,
    family: &'a str,
}

impl Row<'_> {
    fn of(outcome: &Outcome) -> Row<'_> {
        Row {
            test: &outcome.test,
            direction: outcome.direction,
            family: &outcome.family,
        }
    }
}
