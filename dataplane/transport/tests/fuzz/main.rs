//! A fuzzer that knows the structure of frames: most are what the QP waits for, many have one thing wrong, and all have a
//! right ICRC and, mostly, right keys, so that they come far. After each frame the record of the QP is checked as a
//! restarted daemon would (`Node::with`), its memory and receive buffers are compared byte by byte with what a model says
//! ([`Model`]), and what became of the frame must fit what it did.
//!
//! QPs of every type are under fire, each with a receive queue of its own or an SRQ, and each sends at the same time, so
//! that requester and responder are both met.
//!
//! `RNIC_FUZZ_FRAMES=10000000` for more frames (`make fuzz`), `RNIC_FUZZ_SEED=17` plays one seed.

#[path = "../common/mod.rs"]
mod common;
mod frames;
mod model;
mod siege;

use rnic_transport::{Mutation, QpType};
use siege::Siege;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Frames of each test run, by all threads together.
const FRAMES: u64 = 1_000_000;

/// What is under fire, by turns: the type, and whether its receives come from an SRQ.
const TARGETS: [(QpType, bool); 10] = [
    (QpType::Rc, false),
    (QpType::Uc, false),
    (QpType::Rc, true),
    (QpType::Ud, false),
    (QpType::Rc, false),
    (QpType::Uc, true),
    (QpType::Rc, false),
    (QpType::Ud, true),
    (QpType::XrcIni, false),
    (QpType::XrcTgt, true),
];

/// Types of which the sums are kept apart.
const TYPES: [QpType; 5] = [QpType::Rc, QpType::Uc, QpType::Ud, QpType::XrcIni, QpType::XrcTgt];

/// What became of the frames for one type.
#[derive(Copy, Clone, Default)]
struct Tally {
    qps: u64,
    frames: u64,
    accepted: u64,
    refused: u64,
    dropped: u64,
    /// Of those accepted, responses.
    responses: u64,
    /// Receives completed with success.
    received: u64,
    /// Packets that the QPs sent.
    sent: u64,
}

impl Tally {
    fn add(&mut self, other: &Tally) {
        self.qps += other.qps;
        self.frames += other.frames;
        self.accepted += other.accepted;
        self.refused += other.refused;
        self.dropped += other.dropped;
        self.responses += other.responses;
        self.received += other.received;
        self.sent += other.sent;
    }
}

fn target(seed: u64) -> (QpType, bool) {
    TARGETS[(seed % TARGETS.len() as u64) as usize]
}

fn play(seed: u64, mutation: Option<Mutation>) -> Tally {
    let (qp_type, srq) = target(seed);
    Siege::new(qp_type, srq, seed, mutation).run()
}

fn number(name: &str) -> Option<u64> {
    let value = std::env::var(name).ok()?;
    let number = value.parse();
    Some(number.unwrap_or_else(|_| panic!("{name}={value} is no number")))
}

/// Plays every `step`th seed from `first` on until `frames` frames were sent; the sums by type.
fn besiege(first: u64, step: u64, frames: u64) -> [Tally; TYPES.len()] {
    let mut sums = [Tally::default(); TYPES.len()];
    let mut seeds = (first..).step_by(step as usize);
    while sums.iter().map(|sum| sum.frames).sum::<u64>() < frames {
        let seed = seeds.next().expect("there is no end of seeds");
        let Ok(tally) = catch_unwind(AssertUnwindSafe(|| play(seed, None))) else {
            let target = target(seed);
            panic!("seed {seed}, {target:?}: RNIC_FUZZ_SEED={seed} cargo test -p rnic-transport --test fuzz");
        };
        sums[place(target(seed).0)].add(&tally);
    }
    sums
}

fn place(qp_type: QpType) -> usize {
    let place = TYPES.iter().position(|of| *of == qp_type);
    place.expect("every type under fire has its sum")
}

#[test]
fn frames_that_are_almost_right_leave_the_qp_and_the_memory_as_they_must_be() {
    if let Some(seed) = number("RNIC_FUZZ_SEED") {
        play(seed, None);
        return;
    }
    let frames = number("RNIC_FUZZ_FRAMES").unwrap_or(FRAMES);
    let workers = std::thread::available_parallelism().map_or(1, |n| n.get() as u64);
    let mut sums = [Tally::default(); TYPES.len()];
    std::thread::scope(|scope| {
        let worker = |first| scope.spawn(move || besiege(first, workers, frames.div_ceil(workers)));
        let threads: Vec<_> = (0..workers).map(worker).collect();
        for thread in threads {
            // The worker has said which seed it was.
            let part = thread.join().unwrap_or_else(|_| panic!("a seed failed"));
            for (sum, part) in sums.iter_mut().zip(&part) {
                sum.add(part);
            }
        }
    });
    for qp_type in TYPES {
        judge(qp_type, &sums[place(qp_type)]);
    }
}

/// Frames must come far to mean anything.
fn judge(qp_type: QpType, sum: &Tally) {
    let Tally {
        qps,
        frames,
        accepted,
        refused,
        dropped,
        responses,
        received,
        sent,
    } = *sum;
    println!(
        "{frames} frames to {qps} QPs of {qp_type}: {accepted} accepted, {responses} of them responses, {refused} \
         refused, {dropped} dropped, {received} receives; {sent} packets sent"
    );
    assert!(
        accepted * 2 > frames,
        "{qp_type}: {accepted} of {frames} accepted"
    );
    let (receives, sends) = (received * 20 > frames, sent * 20 > frames);
    assert!(dropped * 100 > frames, "{qp_type}: {dropped} of {frames} dropped");
    match qp_type {
        QpType::Rc => assert!(receives && sends && responses * 10 > frames && refused > qps / 10),
        QpType::XrcIni => assert!(sends && responses == accepted && received == 0 && refused > qps / 10),
        QpType::XrcTgt => assert!(receives && sends && responses == 0 && refused > qps / 10),
        // What the peer does wrong costs its message alone; only a bad buffer of its owner ends the QP.
        _ => assert!(receives && sends && responses == 0 && refused > 0 && refused <= qps),
    }
}

/// Faults that let frames do what they must not.
const NOTICED: [Mutation; 12] = [
    Mutation::ReexecuteDuplicateSend,
    Mutation::ReexecuteDuplicateAtomic,
    Mutation::NakTwice,
    Mutation::SkipKeyCheck,
    Mutation::SkipLengthCheck,
    Mutation::SkipReceiveCapacity,
    Mutation::IgnoreOpcodeSequence,
    Mutation::FlushWithSuccess,
    Mutation::TakeLatePacket,
    Mutation::OverlookGap,
    Mutation::SkipQkeyCheck,
    Mutation::StayUpAfterRefusal,
];

#[test]
fn a_fault_that_lets_frames_do_what_they_must_not_is_noticed() {
    const SEEDS: u64 = 2_000;
    for mutation in NOTICED {
        let fails = |seed: &u64| catch_unwind(|| play(*seed, Some(mutation))).is_err();
        let seed = (0..SEEDS).find(fails);
        assert!(seed.is_some(), "{SEEDS} seeds do not notice {mutation:?}");
    }
}
