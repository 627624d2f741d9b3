//! Congestion notification: marked frames, and the CNPs about them.

use crate::checker::{Options, Seen};
use crate::report::{At, Flow, Report};
use crate::rule::Rule;
use std::collections::HashMap;
use std::net::IpAddr;

/// What a CNP is about: who notifies whom, and the QP at the latter.
pub(crate) type About = (IpAddr, IpAddr, u32);

#[derive(Default)]
struct Notifier {
    /// Marked frames that went to it.
    marks: u64,
    /// CNPs that came from it.
    cnps: u64,
    last: Option<u64>,
    /// A marked frame for which a CNP is due: its number, its time, its flow.
    due: Option<(usize, u64, String)>,
}

/// Marks and CNPs by what they are about.
#[derive(Default)]
pub(crate) struct Congestion {
    notifiers: HashMap<About, Notifier>,
    /// Marked frames whose sender's QP is not known, by the address that got them.
    unknown: HashMap<IpAddr, u64>,
    /// CNPs that may come without a mark here: about those marked before frames were missed, or among them.
    excused: u64,
}

impl Congestion {
    /// So many frames went by uncaptured.
    pub fn forget(&mut self, missed: u64) {
        let waiting = |notifier: &Notifier| notifier.marks.saturating_sub(notifier.cnps);
        let before: u64 = self.notifiers.values().map(waiting).sum();
        let unknown: u64 = self.unknown.values().sum();
        *self = Congestion {
            excused: self.excused + before + unknown + missed,
            ..Congestion::default()
        };
    }

    /// A marked frame. `about` is the CNP it asks for, if its sender's QP is known.
    pub fn mark(&mut self, seen: &Seen<'_>, about: Option<About>, near: bool, options: &Options) {
        let Some(about) = about else {
            *self.unknown.entry(seen.frame.net().dst()).or_default() += 1;
            return;
        };
        let notifier = self.notifiers.entry(about).or_default();
        notifier.marks += 1;
        let Some(within) = options.cnp_within.filter(|_| near) else {
            return;
        };
        let recent = notifier.last.is_some_and(|last| seen.nanos - last <= within);
        if !recent && notifier.due.is_none() {
            notifier.due = Some((seen.at.number, seen.nanos, seen.at.flow.to_string()));
        }
    }

    /// A CNP.
    pub fn notify(&mut self, seen: &Seen<'_>, options: &Options, report: &mut Report) {
        if !seen.near {
            return;
        }
        let net = seen.frame.net();
        let about = (net.src(), net.dst(), seen.frame.bth().dest_qpn);
        let unknown = self.unknown.get(&net.src()).copied().unwrap_or(0);
        let notifier = self.notifiers.entry(about).or_default();
        notifier.cnps += 1;
        let (cnps, marks) = (notifier.cnps, notifier.marks + unknown);
        report.check(Rule::CnpCause, cnps <= marks + self.excused, &seen.at, || {
            format!("CNP number {cnps} after {marks} marked frames")
        });
        if let Some(last) = notifier.last {
            let apart = seen.nanos - last;
            report.check(Rule::CnpPacing, apart >= options.cnp_interval, &seen.at, || {
                format!(
                    "{apart} ns after the one before; {} ns are due",
                    options.cnp_interval
                )
            });
        }
        notifier.last = Some(seen.nanos);
        self.overdue(about, seen.nanos, options, report);
        if let Some(notifier) = self.notifiers.get_mut(&about) {
            notifier.due = None;
        }
    }

    fn overdue(&mut self, about: About, now: u64, options: &Options, report: &mut Report) {
        let (Some(within), Some(notifier)) = (options.cnp_within, self.notifiers.get_mut(&about)) else {
            return;
        };
        if let Some((number, nanos, flow)) = notifier.due.take() {
            let at = At {
                number,
                nanos,
                ours: false,
                flow: Flow::Text(flow),
            };
            report.check(Rule::CnpMissing, now <= nanos + within, &at, || {
                format!("no CNP within {within} ns of this marked frame")
            });
        }
    }

    /// The end of the trace, at `now`.
    pub fn finish(&mut self, now: u64, options: &Options, report: &mut Report) {
        let all: Vec<About> = self.notifiers.keys().copied().collect();
        for about in all {
            self.overdue(about, now, options, report);
        }
    }
}
