//! Checks captures of RoCEv2 traffic, ours or anyone's, against the transport's rules.
//!
//! [`check_file`] reads a pcap or pcapng file, follows every RC, XRC, UC and UD flow in it by addresses and QP numbers,
//! and lists each [`Violation`] of a [`Rule`] with the frame, its time and flow, and the section of the specification.
//! A capture sees frames at one point of the network; what of each rule holds there is written down at [`Rule`].
//!
//! Not followed: payload (data is compared by the tests that sent it), keys and access rights, and the order of
//! responses of lanes whose requests cannot be told apart, which [`Report::notes`] lists.

#![forbid(unsafe_code)]

mod capture;
mod checker;
mod cnp;
mod datagram;
mod lanes;
mod report;
mod requests;
mod responses;
mod rule;
mod stream;

pub use capture::{Capture, CaptureError, Record, parse, read};
pub use checker::{Near, Options, check};
pub use report::{Report, Violation};
pub use rule::Rule;

use std::path::Path;

/// Reads and checks a capture file.
///
/// # Errors
/// When it cannot be read.
pub fn check_file(path: &Path, options: &Options) -> Result<Report, CaptureError> {
    let capture = read(path)?;
    let mut report = check(&capture.records, options);
    if capture.truncated {
        report.note("the file ends in the middle of a block".into());
    }
    Ok(report)
}
