//! The matrix as a table, and as JSON.
use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use rnic_trace::{Options, Violation, check_file};
use serde::Serialize;

use crate::matrix::{MTUS, Outcome};
use crate::wire::{Family, Wire};

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

    /// A line for each test and direction, a column for each wire and family, and in each cell a mark for each path MTU;
    /// in blocks of a few wires, that lines fit a terminal. And the sums.
    pub fn table(&self) -> String {
        let mut rows: Vec<Row<'_>> = self.outcomes.iter().map(Row::of).collect();
        // In the order of the matrix.
        let first = |row: &Row<'_>| self.outcomes.iter().position(|outcome| outcome.test == row.test);
        rows.sort_by_key(|row| (first(row), row.direction));
        rows.dedup();
        let blocks: Vec<String> = Wire::ALL
            .chunks(COLUMNS)
            .map(|wires| self.block(&rows, wires))
            .collect();
        let mut text = blocks.join("\n\n");
        let mtus = MTUS.map(|mtu| mtu.bytes().to_string()).join(", ");
        text += &format!(
            "\n\nEach mark a path MTU: {mtus}. {RIGHT} right, {WRONG} wrong, {NOT_RUN} not run: datagrams have the path MTU of \
             the link; the tools of UC and UD wait for ever for what is lost, and those of RC for too long with small packets."
        );
        let sum = |of: fn(&Outcome) -> u64| self.outcomes.iter().map(of).sum::<u64>();
        text + &format!(
            "\n\n{} cases, {} failed, {} requests, {} bytes compared; frames lost: {} from the guest, {} to it; {} s; {}",
            self.outcomes.len(),
            self.failures().count(),
            sum(|o| o.messages),
            sum(|o| o.bytes),
            sum(|o| o.lost[0]),
            sum(|o| o.lost[1]),
            sum(|o| o.milliseconds) / 1000,
            self.kernel,
        )
    }

    /// The columns of some wires, without rows of which nothing was run there.
    fn block(&self, rows: &[Row<'_>], wires: &[Wire]) -> String {
        let mut lines = vec![format!("{:<28}", ""), format!("{:<16} {:<11}", "", "")];
        for wire in wires {
            lines[0] += &format!("  {:<11}", wire.name);
            lines[1] += "  IPv4  IPv6 ";
        }
        for row in rows {
            let marks = |wire| {
                let cells = Family::ALL.map(|family| {
                    let cell = MTUS.iter().map(|mtu| self.mark(*row, wire, family, mtu.bytes()));
                    cell.collect::<String>()
                });
                cells.join(" ")
            };
            let cells: Vec<String> = wires.iter().map(marks).collect();
            let ran = cells.iter().any(|cell| cell.contains([RIGHT, WRONG]));
            if ran {
                let head = format!("{:<16} {:<11}", row.test, row.direction);
                lines.push(format!("{head}  {}", cells.join("  ")));
            }
        }
        lines.join("\n")
    }

    /// What came of a row at one place of the matrix.
    fn mark(&self, row: Row<'_>, wire: &Wire, family: Family, mtu: u32) -> char {
        let here = |o: &&Outcome| {
            Row::of(o) == row && o.wire == wire.name && o.family == family.to_string() && o.mtu == mtu
        };
        let mut of = self.outcomes.iter().filter(here);
        match of.next() {
            None => NOT_RUN,
            Some(first) if first.error.is_none() && of.all(|o| o.error.is_none()) => RIGHT,
            Some(_) => WRONG,
        }
    }
}

/// Wires side by side.
const COLUMNS: usize = 5;

/// Marks of the table.
const RIGHT: char = '+';
const WRONG: char = 'X';
const NOT_RUN: char = '·';

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
}

impl Row<'_> {
    fn of(outcome: &Outcome) -> Row<'_> {
        Row {
            test: &outcome.test,
            direction: outcome.direction,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(direction: &'static str, family: &str, mtu: u32, wire: &'static str, right: bool) -> Outcome {
        Outcome {
            test: "RC SEND".into(),
            direction,
            family: family.into(),
            mtu,
            wire,
            messages: 1,
            bytes: 2,
            milliseconds: 3,
            lost: [0; 2],
            error: (!right).then(|| "why".into()),
        }
    }

    #[test]
    fn the_table_has_a_mark_for_each_path_mtu_of_each_wire_and_family() {
        let report = Report {
            kernel: "linux".into(),
            seed: 1,
            outcomes: vec![
                outcome("there", "v4", 256, "clean", true),
                outcome("there", "v4", 4096, "clean", false),
                outcome("there", "v6", 512, "loss 10%", true),
                outcome("back", "v4", 256, "clean", true),
            ],
            traces: Vec::new(),
            complaints: Vec::new(),
        };
        let table = report.table();
        let lines: Vec<&str> = table.lines().collect();
        let none = "·····";
        let line = |cells: [&str; 10]| {
            let pairs: Vec<String> = cells
                .chunks(2)
                .map(|pair| format!("{} {}", pair[0], pair[1]))
                .collect();
            pairs.join("  ")
        };
        let mut cells = [none; 10];
        cells[0] = "+····";
        assert_eq!(lines[2], format!("RC SEND          back         {}", line(cells)));
        (cells[0], cells[5]) = ("+···X", "·+···");
        assert_eq!(lines[3], format!("RC SEND          there        {}", line(cells)));
        assert!(table.contains("4 cases, 1 failed, 4 requests"));
    }
}
