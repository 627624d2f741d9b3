//! What is run, and what came of it.
use std::time::Instant;

use anyhow::Result;
use rnic::Mtu;
use rnic_tests::probe::{Op, Plan};
use serde::Serialize;

use crate::atomics::Atomics;
use crate::end::Service;
use crate::exchange::{Exchange, Moved};
use crate::pingpong::Pingpong;
use crate::unreliable::Unreliable;
use crate::wire::{Family, Wire};

/// How much of the matrix to run.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Extent {
    /// Each test at a few places of the matrix: a minute or two.
    Bounded,
    /// Everything.
    Full,
}

/// One place of the matrix.
#[derive(Debug)]
pub struct Case {
    /// What is done: a row of the table, with the direction and the family.
    pub test: String,
    /// Who asks whom.
    pub direction: &'static str,
    /// Addresses used.
    pub family: Family,
    /// Path MTU.
    pub mtu: Mtu,
    /// What to do.
    pub work: Work,
}

/// What to do in a case.
#[derive(Debug)]
pub enum Work {
    /// Messages, with our harness at both ends.
    Exchange(Exchange),
    /// Atomics, with our harness at both ends.
    Atomics(Atomics),
    /// Messages that may be lost, with our harness at both ends.
    Unreliable(Unreliable),
    /// A tool of rdma-core at the other end.
    Pingpong(Pingpong),
}

impl Case {
    /// Names it, for `--only` and in messages.
    pub fn name(&self, wire: &Wire) -> String {
        let Case {
            test,
            direction,
            family,
            mtu,
            ..
        } = self;
        format!("{test}, {direction}, IP{family}, path MTU {mtu}, {}", wire.name)
    }
}

/// What came of a case.
#[derive(Clone, Debug, Serialize)]
pub struct Outcome {
    /// What was done.
    pub test: String,
    /// Who asked whom.
    pub direction: &'static str,
    /// `v4` or `v6`.
    pub family: String,
    /// Path MTU in bytes.
    pub mtu: u32,
    /// What the wire did.
    pub wire: &'static str,
    /// Requests carried out.
    pub messages: u64,
    /// Bytes compared.
    pub bytes: u64,
    /// How long it took.
    pub milliseconds: u64,
    /// Frames lost from the guest, and to it.
    pub lost: [u64; 2],
    /// What was wrong, if anything.
    pub error: Option<String>,
}

impl Outcome {
    /// Of a case that began at `began`.
    pub fn new(case: &Case, wire: &Wire, began: Instant, result: Result<Moved>) -> Outcome {
        let moved = *result.as_ref().unwrap_or(&Moved::default());
        Outcome {
            test: case.test.clone(),
            direction: case.direction,
            family: case.family.to_string(),
            mtu: case.mtu.bytes(),
            wire: wire.name,
            messages: moved.messages,
            bytes: moved.bytes,
            milliseconds: began.elapsed().as_millis() as u64,
            lost: [0; 2],
            error: result.err().map(|error| format!("{error:#}")),
        }
    }
}

/// The path MTU of the link, which datagrams have.
const LARGEST: Mtu = Mtu::Mtu4096;
/// Path MTUs, each a mark in a cell of the table.
pub const MTUS: [Mtu; 5] = [Mtu::Mtu256, Mtu::Mtu512, Mtu::Mtu1024, Mtu::Mtu2048, Mtu::Mtu4096];

/// Which ends make requests, ours and theirs, with the way that goes.
const WAYS: [([bool; 2], &str); 3] = [
    ([true, false], "rnic → rxe"),
    ([false, true], "rxe → rnic"),
    ([true, true], "rnic ↔ rxe"),
];

/// The cases for one wire.
pub fn cases(wire: &Wire, extent: Extent, seed: u64) -> Vec<Case> {
    let mut all = Vec::new();
    for family in Family::ALL {
        for mtu in MTUS {
            exchanges(family, mtu, seed, &mut all);
            if wire.is_clean() {
                unreliable_exchanges(family, mtu, seed, &mut all);
            }
            unreliable(wire, Service::Uc, family, mtu, seed, &mut all);
            atomics(family, mtu, seed, &mut all);
            pingpongs(wire, family, mtu, &mut all);
        }
        unreliable(wire, Service::Ud, family, LARGEST, seed, &mut all);
    }
    if extent == Extent::Bounded {
        all.retain(|case| is_bounded(case, wire));
    }
    all
}

/// Each operation by itself, both ways, then all of them mixed, both ways at once, and SENDs that ends receive by SRQs.
fn exchanges(family: Family, mtu: Mtu, seed: u64, all: &mut Vec<Case>) {
    let each = Op::ALL
        .into_iter()
        .map(|op| (label(op), vec![op], &WAYS[..2], false));
    let mixed = ("RC mixed", Op::ALL.to_vec(), &WAYS[2..], false);
    let shared = ("RC SEND to SRQs", vec![Op::Send, Op::SendImm], &WAYS[..2], true);
    for (test, ops, ways, shared) in each.chain([mixed, shared]) {
        for (requester, direction) in ways {
            let plan = Plan {
                ops: ops.clone(),
                // Other data and sizes in every case, the same in every run of a seed.
                seed: seed.wrapping_add(all.len() as u64),
                size_max: 20_000,
                ..Plan::default()
            };
            all.push(Case {
                test: test.into(),
                direction,
                family,
                mtu,
                work: Work::Exchange(Exchange {
                    service: Service::Rc,
                    plan,
                    requester: *requester,
                    family,
                    mtu,
                    shared,
                }),
            });
        }
    }
}

/// All operations of UC mixed, each way, on a wire that loses nothing: all of it arrives, so it is as on RC.
fn unreliable_exchanges(family: Family, mtu: Mtu, seed: u64, all: &mut Vec<Case>) {
    for (requester, direction) in &WAYS[..2] {
        let plan = Plan {
            ops: vec![Op::Send, Op::SendImm, Op::Write, Op::WriteImm],
            seed: seed.wrapping_add(all.len() as u64),
            // Nobody slows a sender down: what is on its way at a time must fit into the tap's queue.
            size_max: 8_000,
            window: 4,
            ..Plan::default()
        };
        all.push(Case {
            test: "UC mixed".into(),
            direction,
            family,
            mtu,
            work: Work::Exchange(Exchange {
                service: Service::Uc,
                plan,
                requester: *requester,
                family,
                mtu,
                shared: false,
            }),
        });
    }
}

/// What arrives of messages that may be lost.
fn unreliable(wire: &Wire, service: Service, family: Family, mtu: Mtu, seed: u64, all: &mut Vec<Case>) {
    let tests: &[_] = match service {
        Service::Ud => &[("UD SEND_IMM", Op::SendImm)],
        _ => &[
            ("UC SEND", Op::Send),
            ("UC SEND_IMM", Op::SendImm),
            ("UC WRITE", Op::Write),
            ("UC WRITE_IMM", Op::WriteImm),
        ],
    };
    for (test, op) in tests {
        for (sender, (_, direction)) in WAYS[..2].iter().enumerate() {
            // Nothing comes back: what matters is what the wire does to frames that go the sender's way.
            let way = 1 - sender;
            all.push(Case {
                test: (*test).into(),
                direction,
                family,
                mtu,
                work: Work::Unreliable(Unreliable {
                    service,
                    op: *op,
                    sender,
                    family,
                    mtu,
                    whole: wire.netem[way].is_none(),
                    disorder: wire.disorders(way),
                    seed: seed.wrapping_add(all.len() as u64),
                }),
            });
        }
    }
}

fn atomics(family: Family, mtu: Mtu, seed: u64, all: &mut Vec<Case>) {
    for (requester, direction) in WAYS {
        all.push(Case {
            test: "RC atomics".into(),
            direction,
            family,
            mtu,
            work: Work::Atomics(Atomics {
                requester,
                family,
                mtu,
                seed: seed.wrapping_add(all.len() as u64),
            }),
        });
    }
}

fn label(op: Op) -> &'static str {
    match op {
        Op::Send => "RC SEND",
        Op::SendImm => "RC SEND_IMM",
        Op::Write => "RC WRITE",
        Op::WriteImm => "RC WRITE_IMM",
        Op::Read => "RC READ",
    }
}

/// Each tool of rdma-core as server and as client. Those of UC and UD wait for ever for a message that is lost, so they are
/// for wires that lose nothing.
fn pingpongs(wire: &Wire, family: Family, mtu: Mtu, all: &mut Vec<Case>) {
    // The tool, what makes our example do the same, and whether it gets along with any wire.
    const TOOLS: [(&str, &[&str], bool); 4] = [
        ("ibv_rc_pingpong", &["-t", "rc"], true),
        ("ibv_uc_pingpong", &["-t", "uc"], false),
        ("ibv_ud_pingpong", &["-t", "ud"], false),
        ("ibv_srq_pingpong", &["-t", "srq"], true),
    ];
    for (tool, args, reliable) in TOOLS {
        // For each message rxe heeds one NAK, then its timer: 20 s a run with 16 packets a message.
        let slow = mtu < Mtu::Mtu1024;
        if !wire.is_clean() && (slow || !reliable) {
            continue;
        }
        let datagrams = tool == "ibv_ud_pingpong";
        if datagrams && mtu != LARGEST {
            continue;
        }
        for (serves, direction) in [(false, "rnic → rxe"), (true, "rxe → rnic")] {
            all.push(Case {
                test: tool.into(),
                direction,
                family,
                mtu,
                work: Work::Pingpong(Pingpong {
                    tool,
                    args,
                    datagrams,
                    checks: tool != "ibv_srq_pingpong",
                    serves,
                    family,
                    mtu,
                    lossy: wire.loses(0) || wire.loses(1),
                }),
            });
        }
    }
}

/// Whether a place of the matrix is in the bounded form: everything at the smallest and the largest path MTU on a whole
/// wire, and at a middle one on the worst; the mixture on the others.
fn is_bounded(case: &Case, wire: &Wire) -> bool {
    if case.test.starts_with("UD") {
        return wire.name == "clean" || wire.name == "loss 10%" && case.family == Family::V6;
    }
    match (wire.name, case.family) {
        ("clean", Family::V4) => matches!(case.mtu, Mtu::Mtu256 | Mtu::Mtu4096),
        ("clean", Family::V6) => case.mtu == Mtu::Mtu1024,
        ("loss 10%", Family::V4) => case.mtu == Mtu::Mtu1024,
        ("all", Family::V6) => case.mtu == Mtu::Mtu512,
        (_, Family::V4) => case.test == "RC mixed" && case.mtu == Mtu::Mtu2048,
        _ => false,
    }
}
