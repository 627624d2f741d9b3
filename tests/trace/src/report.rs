//! What a check found.

use crate::capture::Record;
use crate::rule::Rule;
use rnic_wire::Frame;
use std::fmt;

/// A rule that a frame violates.
#[derive(Clone, Debug)]
pub struct Violation {
    /// The frame's number in the file, from 1.
    pub frame: usize,
    /// Nanoseconds since the first frame of the capture.
    pub nanos: u64,
    /// Addresses, opcode, destination QP and PSN of the frame.
    pub flow: String,
    /// Whether the capturing host sent the frame, as far as the capture says so.
    pub ours: bool,
    /// The rule.
    pub rule: Rule,
    /// How it is violated.
    pub text: String,
}

/// "frame 12 at 0.000345 s, 10.0.0.1>10.0.0.2 RC ACK qp=0x000011 psn=0x000007: single-nak (9.7.5.2.1): …"
impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (seconds, micros) = (self.nanos / 1_000_000_000, self.nanos / 1_000 % 1_000_000);
        write!(
            f,
            "frame {} at {seconds}.{micros:06} s, {}: {} ({}): {}",
            self.frame,
            self.flow,
            self.rule,
            self.rule.section(),
            self.text
        )
    }
}

/// The result of a check.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Frames in the capture.
    pub frames: usize,
    /// Sound RoCEv2 frames among them.
    pub roce: usize,
    /// RoCEv2 frames damaged before the point of capture, which the options allow.
    pub damaged: usize,
    /// Connections followed in both directions.
    pub connections: usize,
    /// Every violation, in the order of frames.
    pub violations: Vec<Violation>,
    /// What could not be checked, and why.
    pub notes: Vec<String>,
    /// How often each rule was applied, in the order of [`Rule::ALL`].
    applied: [u64; Rule::ALL.len()],
}

impl Report {
    /// How often a rule was applied, whatever came of it.
    pub fn applied(&self, rule: Rule) -> u64 {
        self.applied[rule as usize]
    }

    /// Applies a rule to a frame; `text` says how it is violated.
    pub(crate) fn check(&mut self, rule: Rule, holds: bool, at: &At<'_>, text: impl FnOnce() -> String) {
        self.applied[rule as usize] += 1;
        if !holds {
            self.violations.push(Violation {
                frame: at.number,
                nanos: at.nanos,
                flow: at.flow.to_string(),
                ours: at.ours,
                rule,
                text: text(),
            });
        }
    }

    pub(crate) fn note(&mut self, note: String) {
        if !self.notes.contains(&note) {
            self.notes.push(note);
        }
    }
}

/// The frame looked at, as violations name it.
pub(crate) struct At<'a> {
    pub number: usize,
    /// Nanoseconds since the first frame of the capture.
    pub nanos: u64,
    pub ours: bool,
    pub flow: Flow<'a>,
}

pub(crate) enum Flow<'a> {
    Frame(&'a Frame<'a>),
    Text(String),
}

impl<'a> At<'a> {
    pub fn new(record: &Record, start: u64, flow: Flow<'a>) -> Self {
        At {
            number: record.number,
            nanos: record.nanos - start,
            ours: record.sent == Some(true),
            flow,
        }
    }
}

impl fmt::Display for Flow<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Flow::Frame(frame) => {
                let bth = frame.bth();
                write!(
                    f,
                    "{} {} qp={:#08x} psn={}",
                    frame.datagram(),
                    bth.opcode,
                    bth.dest_qpn,
                    bth.psn
                )
            }
            Flow::Text(text) => f.write_str(text),
        }
    }
}
