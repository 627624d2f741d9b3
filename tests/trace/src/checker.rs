//! Goes through a trace frame by frame.

use crate::capture::Record;
use crate::cnp::{About, Congestion};
use crate::datagram::Datagrams;
use crate::lanes::{LaneKey, Lanes, Survey};
use crate::report::{At, Flow, Report};
use crate::rule::Rule;
use crate::stream::Stream;
use rnic_wire::{Ecn, Frame, Kind, Summary, TableCrc, Transport, classify, verify_icrc};
use std::net::IpAddr;

/// QP1, to which management datagrams go.
const QP1: u32 = 1;

/// Hosts between which and the point of capture nothing is lost, damaged, doubled or reordered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Near {
    /// None: the point lies in the middle of a network that may do anything.
    Nobody,
    /// The host that captured, as far as the capture says which frames it sent. The capture of a port with fault
    /// injection shows frames behind the faults: nobody is near there.
    #[default]
    Sender,
    /// All: the network is sound.
    Everybody,
    /// Those with these addresses.
    Hosts(Vec<IpAddr>),
}

/// How a trace is to be checked.
#[derive(Clone, Debug)]
pub struct Options {
    /// Which hosts are near.
    pub near: Near,
    /// Frames of far hosts may have been damaged before the point: they count as lost.
    pub damage: bool,
    /// Nanoseconds within which a frame may cross an RNR NAK on its way.
    pub crossing: u64,
    /// Least nanoseconds between two CNPs about one QP.
    pub cnp_interval: u64,
    /// Nanoseconds within which a marked frame must be followed by a CNP; `None` where there need be none.
    pub cnp_within: Option<u64>,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            near: Near::default(),
            damage: false,
            crossing: 1_000_000,
            cnp_interval: 4_000,
            cnp_within: None,
        }
    }
}

/// A sound frame on its way through the rules.
pub(crate) struct Seen<'a> {
    pub frame: &'a Frame<'a>,
    pub at: At<'a>,
    /// Nanoseconds since the capture began.
    pub nanos: u64,
    /// Its sender is near.
    pub near: bool,
    pub crossing: u64,
}

struct Checker<'o> {
    options: &'o Options,
    lanes: Lanes,
    /// Requests, by lane.
    streams: Vec<Stream>,
    /// Who sends in a lane has refused a request, and is in ERR.
    refused: Vec<bool>,
    ports: Vec<Option<u16>>,
    datagrams: Datagrams,
    congestion: Congestion,
    report: Report,
}

/// Checks a trace.
pub fn check(records: &[Record], options: &Options) -> Report {
    let mut report = Report::default();
    report.frames = records.len();
    let mut survey = Survey::default();
    for record in records {
        if let Kind::Roce(frame) = classify(&record.bytes, None)
            && connected(frame.bth().opcode.transport)
            && verify_icrc(&TableCrc, frame.datagram())
        {
            survey.look(&frame);
        }
    }
    let lanes = survey.finish(&mut report);
    let mut checker = Checker {
        options,
        streams: (0..lanes.len())
            .map(|lane| Stream::new(lanes.path(lane)))
            .collect(),
        refused: vec![false; lanes.len()],
        ports: vec![None; lanes.len()],
        lanes,
        datagrams: Datagrams::default(),
        congestion: Congestion::default(),
        report,
    };
    let start = records.first().map_or(0, |record| record.nanos);
    for record in records {
        checker.take(record, start);
    }
    let end = records.last().map_or(0, |record| record.nanos - start);
    checker.congestion.finish(end, options, &mut checker.report);
    checker.report.violations.sort_by_key(|violation| violation.nanos);
    checker.report
}

fn connected(transport: Transport) -> bool {
    matches!(transport, Transport::Rc | Transport::Uc | Transport::Xrc)
}

impl Checker<'_> {
    fn take(&mut self, record: &Record, start: u64) {
        if record.missed > 0 {
            self.forget(record);
        }
        let near = |src: Option<IpAddr>| match &self.options.near {
            Near::Nobody => false,
            Near::Sender => record.sent == Some(true),
            Near::Everybody => true,
            Near::Hosts(hosts) => src.is_some_and(|src| hosts.contains(&src)),
        };
        let frame = match classify(&record.bytes, None) {
            Kind::Other => return,
            Kind::Roce(frame) => frame,
            Kind::Malformed(error) => {
                return self.broken(record, start, near(None), Rule::Malformed, error.to_string());
            }
            Kind::ReservedOpcode { datagram, opcode, .. } => {
                let sound = verify_icrc(&TableCrc, &datagram);
                let near = sound || near(Some(datagram.net().src()));
                let text = format!("opcode {opcode:#04x} is not defined");
                return self.broken(record, start, near, Rule::ReservedOpcode, text);
            }
        };
        let near = near(Some(frame.net().src()));
        if !verify_icrc(&TableCrc, frame.datagram()) {
            let text = "the ICRC is wrong".into();
            return self.broken(record, start, near, Rule::Icrc, text);
        }
        let at = At::new(record, start, Flow::Frame(&frame));
        self.report.roce += 1;
        for rule in [Rule::Malformed, Rule::ReservedOpcode, Rule::Icrc] {
            self.report.check(rule, true, &at, String::new);
        }
        let seen = Seen {
            frame: &frame,
            nanos: at.nanos,
            at,
            near,
            crossing: self.options.crossing,
        };
        self.dispatch(&seen);
    }

    /// Frames went by uncaptured: what is known of every connection may be wrong.
    fn forget(&mut self, record: &Record) {
        self.report.note(format!(
            "{} frames before frame {} were not captured: connections are followed anew from there",
            record.missed, record.number
        ));
        for (lane, stream) in self.streams.iter_mut().enumerate() {
            *stream = Stream::new(self.lanes.path(lane));
            self.refused[lane] = false;
        }
        self.datagrams = Datagrams::default();
        self.congestion.forget(record.missed);
    }

    /// A frame that is not sound: its sender's fault, or damage on its way.
    fn broken(&mut self, record: &Record, start: u64, near: bool, rule: Rule, text: String) {
        if self.options.damage && !near {
            self.report.damaged += 1;
            return;
        }
        let flow = Flow::Text(Summary::new(&record.bytes, None).to_string());
        let at = At::new(record, start, flow);
        self.report.check(rule, false, &at, || text);
    }

    fn dispatch(&mut self, seen: &Seen<'_>) {
        self.flags(seen);
        let opcode = seen.frame.bth().opcode;
        match opcode.transport {
            Transport::Ud => {
                self.datagrams.take(seen, &mut self.report);
                self.note_mark(seen, None);
            }
            Transport::Cnp => self.congestion.notify(seen, self.options, &mut self.report),
            _ => {
                if let Some(lane) = self.lanes.find(&LaneKey::of(seen.frame)) {
                    self.note_mark(seen, Some(lane));
                    self.connected(seen, lane);
                }
            }
        }
    }

    /// The flags of the BTH.
    fn flags(&mut self, seen: &Seen<'_>) {
        let bth = seen.frame.bth();
        let reliable = bth.opcode.transport.is_reliable();
        let management = seen.frame.headers().deth.is_some_and(|deth| deth.src_qpn == QP1) && !seen.at.ours;
        let lawful = reliable || !bth.ack_req || management;
        let text = || "AckReq is set".into();
        self.report.check(Rule::AckReq, lawful, &seen.at, text);
        if seen.at.ours && bth.opcode.transport != Transport::Cnp {
            let text = || "MigReq is 0".into();
            self.report.check(Rule::MigReq, bth.mig_req, &seen.at, text);
        }
    }

    /// Notes a congestion mark.
    fn note_mark(&mut self, seen: &Seen<'_>, lane: Option<usize>) {
        let net = seen.frame.net();
        if net.ecn() != Ecn::Ce {
            return;
        }
        let sender = match (seen.frame.headers().deth, lane) {
            (Some(deth), _) => Some(deth.src_qpn),
            (None, Some(lane)) => self.lanes.peer(lane).map(|peer| self.lanes.key(peer).qpn),
            (None, None) => None,
        };
        let about: Option<About> = sender.map(|qpn| (net.dst(), net.src(), qpn));
        let near = match &self.options.near {
            Near::Nobody => false,
            // What the capturing host received reaches it as it is here.
            Near::Sender => !seen.at.ours,
            Near::Everybody => true,
            Near::Hosts(hosts) => hosts.contains(&net.dst()),
        };
        self.congestion.mark(seen, about, near, self.options);
    }

    fn connected(&mut self, seen: &Seen<'_>, lane: usize) {
        let port = seen.frame.udp_src_port();
        let known = self.ports[lane].replace(port);
        let lawful = port >= 0xC000 && known.is_none_or(|known| known == port);
        self.report
            .check(Rule::SourcePort, lawful, &seen.at, || match known {
                Some(known) if known != port => format!("the source port was {known}, now it is {port}"),
                _ => format!("source port {port}"),
            });
        let opcode = seen.frame.bth().opcode;
        if opcode.is_request() {
            let anew = self.streams[lane].request(seen, &mut self.report);
            if anew {
                self.refused[lane] = false;
                let LaneKey { src, dst, qpn, .. } = *self.lanes.key(lane);
                self.report
                    .note(format!("{src}>{dst} qp={qpn:#08x}: the QP was used anew"));
            }
        }
        if self.refused[lane] {
            self.report.check(Rule::AfterError, !seen.near, &seen.at, || {
                "its sender refused a request before".into()
            });
        }
        if opcode.is_response()
            && let Some(peer) = self.lanes.peer(lane)
            && self.streams[peer].response(seen, &mut self.report)
        {
            self.refused[lane] = true;
        }
    }
}
