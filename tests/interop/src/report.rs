//! The matrix as a table, and as JSON.
use std::path::Path;

use anyhow::{Context as _, Result};
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
