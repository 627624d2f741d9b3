//! Everything a seed decides: the network, the attributes, and what both sides do.

use crate::network::Faults;
use crate::operation::{Aim, Kind, MIX, takes_receive};
use crate::rng::Rng;
use crate::window;
use rnic_transport::{Congestion, DcqcnSettings, Limits, SendFlags, WrOpcode};
use rnic_wire::Mtu;

/// Key of the region that a side's WRITEs go to.
pub(crate) const WRITE_KEY: u32 = 0x100;
/// Key of the region that a side's READs come from.
pub(crate) const READ_KEY: u32 = 0x200;
/// Key of the region that a side's atomics work on.
pub(crate) const ATOMIC_KEY: u32 = 0x300;
/// First of the keys that SENDs with invalidate name.
pub(crate) const INVALIDATE_KEY: u32 = 0x1000;
/// XRC SRQs of the target's domain, and the domain.
pub(crate) const SRQS: [u32; 3] = [0x51, 0xFF_FF51, 0x61];
pub(crate) const XRCD: u32 = 7;
/// One of another domain, and a number that names none.
pub(crate) const FOREIGN_SRQ: u32 = 0x71;
const NO_SRQ: u32 = 0x81;
/// First of the keys that a side invalidates itself.
pub(crate) const OWN_KEY: u32 = 0x2000;
/// A key that names nothing.
pub(crate) const NO_KEY: u32 = 0xDEAD;
/// Bytes of the region that READs come from.
pub(crate) const READ_REGION: u64 = 1 << 16;
/// First `wr_id` of receive WQEs; those of sends count from 0.
pub(crate) const RECV_ID: u64 = 1_000;
/// Base addresses of the regions.
pub(crate) const WRITE_BASE: u64 = 0x7F12_3456_7001;
pub(crate) const READ_BASE: u64 = 0xFFFF_FFFF_FFF0_0000;
pub(crate) const ATOMIC_BASE: u64 = 0x7F12_0000_0008;

/// An error built into one operation.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Injected {
    /// A WRITE, READ, atomic or FLUSH with a key that names nothing.
    BadKey,
    /// One through a memory window that a SEND before it has invalidated.
    ClosedWindow,
    /// A WRITE whose first packet lies inside the region, but not the whole.
    BadRange,
    /// An atomic or ATOMIC WRITE on an address that is no multiple of 8.
    Unaligned,
    /// A SEND longer than its receive WQE.
    TooLong,
    /// A SEND with invalidate of an unknown key.
    BadInvalidate,
    /// An XRC SRQ that there is not.
    NoSrq,
    /// An XRC SRQ of another domain.
    OtherDomain,
    /// A local invalidate of an unknown key, or a bind of one.
    BadLocalKey,
    /// The payload cannot be read.
    LocalSend,
    /// The target of a READ or atomic cannot be written.
    LocalRead,
    /// The receiver's buffer cannot be written.
    LocalRecv,
    /// The receiver never posts a receive WQE, and retries are finite.
    NoReceive,
}

/// One operation of one side.
#[derive(Clone, Debug)]
pub struct Op {
    /// Operation.
    pub opcode: WrOpcode,
    /// Flags.
    pub flags: SendFlags,
    /// Immediate, key to invalidate, or key of a window to bind.
    pub value: u32,
    /// Remote key; of a bind, that of the region.
    pub rkey: u32,
    /// Remote address; of a bind, where the window begins.
    pub addr: u64,
    /// Of an atomic: what is compared or added, and what is swapped in. Of a bind: bytes and rights. Of a FLUSH: bytes, and
    /// how far it goes.
    pub operands: (u64, u64),
    /// What is sent, or what a READ or atomic must fetch.
    pub data: Vec<u8>,
    /// When it is posted, in nanoseconds.
    pub at: u64,
    /// Not before this request of the other side has completed, unless it never can.
    pub after: Option<usize>,
    /// The receive WQE it uses, by number, if it uses one.
    pub recv: Option<usize>,
    /// The XRC SRQ it is for; 0 on RC.
    pub srqn: u32,
}

/// A receive WQE to be posted.
#[derive(Copy, Clone, Debug)]
pub struct Recv {
    /// Bytes.
    pub capacity: u32,
    /// When, in nanoseconds.
    pub at: u64,
    /// The XRC SRQ it is posted to; 0 on RC.
    pub srqn: u32,
}

/// What one side does.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// Its operations, in order.
    pub ops: Vec<Op>,
    /// Receive WQEs it posts for the other side's operations.
    pub recvs: Vec<Recv>,
    /// Bytes of its region for the other side's WRITEs.
    pub write_region: u64,
    /// Contents of its region for the other side's READs.
    pub read_region: Vec<u8>,
    /// The other side's words that its atomics work on: before all of them, and after.
    pub words: [Vec<u64>; 2],
    /// The error built into one operation, and which.
    pub injected: Option<(usize, Injected)>,
}

/// One run.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// Where it came from.
    pub seed: u64,
    /// Side 0 is an XRC initiator and side 1 its target, instead of two RC QPs.
    pub xrc: bool,
    /// Both sides have agreed on selective retransmission.
    pub selective: bool,
    /// Path MTU.
    pub mtu: Mtu,
    /// The network.
    pub faults: Faults,
    /// First PSNs.
    pub psns: [u32; 2],
    /// Local ACK timeout code.
    pub timeout: u8,
    /// Retries.
    pub retry_cnt: u8,
    /// RNR retries.
    pub rnr_retry: u8,
    /// RNR timer code.
    pub min_rnr_timer: u8,
    /// READs and atomics outstanding, both directions.
    pub max_rd_atomic: u8,
    /// Packets outstanding and ACK spacing.
    pub limits: Limits,
    /// Records of the send rings.
    pub ring_len: usize,
    /// Congestion control of both sides.
    pub congestion: Congestion,
    /// Packets marked "congestion experienced", in thousandths, where that is asked for.
    pub marks: u32,
    /// Packets sent before the other side gets its turn, at most.
    pub burst: u64,
    /// Receive WQEs come late.
    pub slow_receiver: bool,
    /// How often a key that was invalidated is said to be still in use.
    pub grace: u32,
    /// When a side goes to SQD for a while, in nanoseconds.
    pub drains: Vec<(usize, u64)>,
    /// What either side does.
    pub plans: [Plan; 2],
}

impl Scenario {
    /// The scenario of a seed: of RC, or in one case of five of XRC.
    pub fn new(seed: u64) -> Self {
        Self::of(seed, Rng::new(seed ^ 0xA14).chance(200))
    }

    /// The scenario of a seed, of XRC or of RC.
    pub fn of(seed: u64, xrc: bool) -> Self {
        let rng = &mut Rng::new(seed ^ (u64::from(xrc) << 40));
        let mtu = rng.pick(&[
            Mtu::M256,
            Mtu::M256,
            Mtu::M256,
            Mtu::M256,
            Mtu::M512,
            Mtu::M1024,
            Mtu::M4096,
        ]);
        let first_psn = |rng: &mut Rng| match rng.below(3) {
            0 => 0xFF_FFFF - rng.below(12) as u32,
            1 => 0x7F_FFFF - rng.below(12) as u32,
            _ => rng.below(1 << 24) as u32,
        };
        let slow_receiver = rng.chance(300);
        let selective = !xrc && Rng::new(seed ^ 0x5E1).chance(400);
        let mut scenario = Scenario {
            seed,
            xrc,
            selective,
            mtu,
            faults: faults(rng),
            psns: [first_psn(rng), first_psn(rng)],
            timeout: rng.between(6, 9) as u8,
            retry_cnt: if rng.chance(900) { 7 } else { rng.below(8) as u8 },
            rnr_retry: if rng.chance(800) { 7 } else { rng.below(7) as u8 },
            // The longest ones take longer than all retries of the shortest ACK timer.
            min_rnr_timer: if rng.chance(100) {
                rng.between(15, 18) as u8
            } else {
                rng.between(1, 14) as u8
            },
            max_rd_atomic: rng.pick(&[1, 2, 3, 16]),
            limits: Limits::new(rng.pick(&[1, 2, 3, 5, 16, 1024]), rng.below(5) as u32),
            congestion: Congestion::Off,
            marks: 0,
            ring_len: rng.pick(&[1, 2, 4, 16, 64]),
            burst: rng.between(1, 24),
            slow_receiver,
            grace: rng.below(4) as u32,
            drains: Vec::new(),
            plans: [Plan::default(), Plan::default()],
        };
        let both = rng.chance(600);
        scenario.plan(rng, 0);
        if both && !xrc {
            scenario.plan(rng, 1);
        }
        if xrc {
            scenario.choose_srqs(rng);
        }
        window::open(&mut scenario.plans, rng);
        for plan in &mut scenario.plans {
            plan.read_region.resize(READ_REGION as usize, 0);
        }
        if rng.chance(200) {
            scenario.inject(rng);
        }
        if rng.chance(150) {
            let count = rng.between(1, 3);
            scenario.drains = (0..count)
                .map(|_| (rng.below(2) as usize, rng.below(400_000)))
                .collect();
        }
        if rng.chance(400) {
            scenario.congestion = congestion(rng);
            scenario.marks = rng.pick(&[0, 20, 200, 1_000]);
        }
        scenario
    }

    /// Fills in the operations of a side, and what the other side needs for them.
    fn plan(&mut self, rng: &mut Rng, side: usize) {
        let count = if rng.chance(30) {
            rng.between(20, 60)
        } else {
            rng.between(1, 9)
        };
        let peer = 1 - side;
        self.plans[peer].read_region = rng.bytes(READ_REGION as usize >> 4);
        self.plans[peer]
            .read_region
            .resize(READ_REGION as usize, side as u8);
        let mut aim = Aim::new(rng);
        let before = aim.words.clone();
        let (mut at, mut recv_at) = (0, 0);
        for number in 0..count {
            at += if rng.chance(700) { 0 } else { rng.below(50_000) };
            let opcode = rng.pick(&MIX);
            let len = self.length(rng);
            let mut op = aim.op(rng, opcode, len, &self.plans[peer]);
            op.recv = self.recv(rng, peer, opcode, op.data.len(), &mut recv_at);
            op.flags = flags(rng, number + 1 == count);
            op.at = at;
            self.plans[side].ops.push(op);
        }
        self.plans[side].words = [before, aim.words];
        self.plans[peer].write_region = aim.write_at - WRITE_BASE;
    }

    /// Chooses an XRC SRQ for each operation of side 0.
    fn choose_srqs(&mut self, rng: &mut Rng) {
        let [plan, peer] = &mut self.plans;
        for op in &mut plan.ops {
            op.srqn = rng.pick(&SRQS);
            if let Some(recv) = op.recv {
                peer.recvs[recv].srqn = op.srqn;
            }
        }
    }

    /// A length near a multiple of the MTU.
    fn length(&self, rng: &mut Rng) -> usize {
        let mtu = self.mtu.bytes();
        // What is lost of them can come again alone only in long messages.
        let long = if self.selective { 300 } else { 60 };
        let packets = if rng.chance(long) && self.mtu == Mtu::M256 {
            rng.between(5, 40)
        } else {
            rng.below(4)
        };
        let around = packets as usize * mtu;
        match rng.below(5) {
            0 => around,
            1 => around + 1,
            2 => (around + mtu - 1).max(1),
            3 => around + rng.below(mtu as u64) as usize,
            _ => rng.below(4) as usize,
        }
    }

    fn recv(
        &mut self,
        rng: &mut Rng,
        peer: usize,
        opcode: WrOpcode,
        len: usize,
        at: &mut u64,
    ) -> Option<usize> {
        if !takes_receive(opcode) {
            return None;
        }
        if self.slow_receiver {
            *at += rng.below(400_000);
        }
        // A WRITE with immediate uses a WQE, but none of its bytes.
        let needed = if opcode == WrOpcode::WriteImm {
            0
        } else {
            len as u32
        };
        let capacity = needed + rng.pick(&[0, 0, 1, 100]);
        let recvs = &mut self.plans[peer].recvs;
        recvs.push(Recv {
            capacity,
            at: *at,
            srqn: 0,
        });
        Some(recvs.len() - 1)
    }

    /// Builds an error into one operation of side 0.
    fn inject(&mut self, rng: &mut Rng) {
        let mut kinds = vec![
            Injected::BadKey,
            Injected::BadRange,
            Injected::Unaligned,
            Injected::TooLong,
            Injected::BadInvalidate,
            Injected::BadLocalKey,
            Injected::LocalSend,
            Injected::LocalRead,
            Injected::LocalRecv,
            Injected::NoReceive,
        ];
        if self.xrc {
            kinds.extend([Injected::NoSrq, Injected::OtherDomain]);
        }
        let [plan, peer] = &mut self.plans;
        if window::closed_before(plan, plan.ops.len()).is_some() {
            // Few have one: those that do try it as often as all the rest.
            kinds.resize(2 * kinds.len(), Injected::ClosedWindow);
        }
        let kind = rng.pick(&kinds);
        let suits = |at: usize| {
            let op = &plan.ops[at];
            let of = op.kind();
            let (sends, writes, read) = (of == Kind::Send, of == Kind::Write, of.fetches());
            let word = matches!(of, Kind::Atomic | Kind::AtomicWrite);
            let full = !op.data.is_empty();
            let remote = full && (writes || read || word) || of == Kind::Flush;
            match kind {
                Injected::BadKey => remote,
                Injected::ClosedWindow => remote && window::closed_before(plan, at).is_some(),
                Injected::BadRange => writes && op.data.len() > self.mtu.bytes(),
                Injected::Unaligned => word,
                Injected::TooLong | Injected::LocalRecv => sends && full,
                Injected::BadInvalidate => op.opcode == WrOpcode::SendInv,
                Injected::BadLocalKey => of == Kind::Local,
                Injected::LocalSend => !read && full,
                Injected::LocalRead => read && full,
                Injected::NoReceive => op.recv.is_some(),
                Injected::NoSrq | Injected::OtherDomain => of != Kind::Local,
            }
        };
        let candidates: Vec<usize> = (0..plan.ops.len()).filter(|at| suits(*at)).collect();
        if candidates.is_empty() {
            return;
        }
        let at = rng.pick(&candidates);
        let closed = window::closed_before(plan, at);
        let op = &mut plan.ops[at];
        match kind {
            Injected::BadKey => op.rkey = NO_KEY,
            Injected::ClosedWindow => op.rkey = closed.expect("chosen for it"),
            Injected::BadRange => {
                op.addr = WRITE_BASE + peer.write_region.saturating_sub(self.mtu.bytes() as u64);
            }
            Injected::Unaligned => op.addr += rng.between(1, 7),
            Injected::BadInvalidate | Injected::BadLocalKey => op.value = NO_KEY,
            Injected::NoSrq => op.srqn = NO_SRQ,
            Injected::OtherDomain => op.srqn = FOREIGN_SRQ,
            Injected::TooLong => {
                let recv = op.recv.expect("a SEND uses a receive WQE");
                peer.recvs[recv].capacity = rng.below(op.data.len() as u64) as u32;
            }
            Injected::NoReceive => {
                peer.recvs.truncate(op.recv.expect("chosen for it"));
                self.rnr_retry = rng.below(7) as u8;
            }
            Injected::LocalSend | Injected::LocalRead | Injected::LocalRecv => {}
        }
        plan.injected = Some((at, kind));
    }
}

/// Words as they lie in memory.
pub(crate) fn bytes_of(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

/// Never so slow that a packet takes as long as an ACK timer.
fn congestion(rng: &mut Rng) -> Congestion {
    const SLOW: u64 = 100_000_000;
    if rng.chance(200) {
        return Congestion::FixedRate {
            rate: rng.between(SLOW, 10 * SLOW),
        };
    }
    Congestion::Dcqcn(DcqcnSettings {
        min_rate: SLOW,
        cnp_interval: rng.between(1_000, 50_000) as u32,
        decrease_interval: rng.between(1_000, 50_000) as u32,
        ..DcqcnSettings::for_line_rate(rng.between(SLOW, 50 * SLOW))
    })
}

fn flags(rng: &mut Rng, last: bool) -> SendFlags {
    let mut flags = SendFlags::NONE;
    for (flag, chance) in [
        (SendFlags::SIGNALED, 600),
        (SendFlags::SOLICITED, 300),
        (SendFlags::FENCE, 200),
    ] {
        if rng.chance(chance) || (last && flag == SendFlags::SIGNALED) {
            flags = flags.union(flag);
        }
    }
    flags
}

fn faults(rng: &mut Rng) -> Faults {
    let level = |rng: &mut Rng| {
        if rng.chance(500) {
            0
        } else {
            rng.pick(&[10, 20, 50, 100, 200])
        }
    };
    Faults {
        loss: level(rng),
        corruption: level(rng) / 4,
        duplication: level(rng),
        reordering: level(rng),
        delay: rng.between(500, 20_000),
        late_by: rng.pick(&[1_000, 20_000, 100_000, 600_000]),
    }
}

/// The scenario without payloads, for a failure report.
impl std::fmt::Display for Scenario {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(
            f,
            "{}, MTU {}, PSNs {:#x?}, timeout {}, retry_cnt {}, rnr_retry {}, min_rnr_timer {}, max_rd_atomic {}, {:?}",
            match (self.xrc, self.selective) {
                (true, _) => "XRC",
                (_, true) => "RC with selective retransmission",
                _ => "RC",
            },
            self.mtu,
            self.psns,
            self.timeout,
            self.retry_cnt,
            self.rnr_retry,
            self.min_rnr_timer,
            self.max_rd_atomic,
            self.limits
        )?;
        writeln!(
            f,
            "ring {}, burst {}, drains {:?}, {:?}, marks {}, {:?}",
            self.ring_len, self.burst, self.drains, self.faults, self.marks, self.congestion
        )?;
        for (side, plan) in self.plans.iter().enumerate() {
            for (at, op) in plan.ops.iter().enumerate() {
                let (bytes, flags) = (op.data.len(), op.flags.bits());
                writeln!(
                    f,
                    "side {side} request {at}: {:?} of {bytes} bytes, flags {flags:#x}, key {:#x}, value {:#x}, at {} ns",
                    op.opcode, op.rkey, op.value, op.at
                )?;
                if let Some(after) = op.after {
                    writeln!(f, "  after request {after} of the other side")?;
                }
            }
            if let Some((at, kind)) = plan.injected {
                writeln!(f, "side {side} request {at} has the error {kind:?}")?;
            }
        }
        Ok(())
    }
}
