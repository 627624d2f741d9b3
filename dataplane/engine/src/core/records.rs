//! What survives the process of a poll core: plain records in its arenas (DESIGN I13).
//!
//! Everything else a core keeps (tables, timers, lists, templates, pointers into client regions) is rebuilt from
//! these.
use std::{io, mem::offset_of, ops::Range, os::fd::OwnedFd};

use rnic_abi::{LINE, event_kind};
use rnic_transport::{Cause, Cold, FieldPath, RcQp, Record, SendFlags, Time, record};

use super::{queue::Unit, recv_queue::RECV_UNITS};
use crate::{
    arena::{ArenaBox, ArenaError, ArenaId, PairArena, PairBox, RangeArena, SlotArena},
    command::Path,
    engine::Limits,
};

/// Bytes of variable parts one core may have: address space, not memory, and no more than the objects that there may be
/// can ask for. (Tools such as valgrind have little of it to give.)
fn rings(limits: &Limits) -> usize {
    const OF_A_CORE: usize = 1 << 36;
    const OF_AN_OBJECT: usize = 1 << 30;
    let objects = limits.qps as usize + limits.srqs as usize;
    objects.saturating_mul(OF_AN_OBJECT).min(OF_A_CORE)
}

/// Files of the arenas of one core.
pub const CORE_FILES: usize = 5;

/// The arenas of one core. Owned by the control thread; the core holds owners of records.
pub struct CoreArenas {
    pub(crate) qps: QpArena,
    pub(crate) cqs: SlotArena<CqRecord>,
    pub(crate) srqs: SlotArena<SrqRecord>,
    /// Send records and private WQE copies.
    pub(crate) rings: RangeArena,
}

/// Names of the arenas of a core, in the order in which they are handed over.
pub(crate) fn ids(core: u32, epoch: u64) -> [ArenaId; CORE_FILES] {
    ["qps", "cold", "cqs", "srqs", "rings"].map(|kind| ArenaId {
        kind,
        owner: core,
        epoch,
    })
}

/// What was found in the arenas of one core.
pub(crate) struct Found {
    pub qps: Vec<QpBox>,
    pub cqs: Vec<ArenaBox<CqRecord>>,
    pub srqs: Vec<ArenaBox<SrqRecord>>,
}

impl CoreArenas {
    /// Arenas that another process has left, in the order of [`ids`], and the owners of what is in them.
    pub(crate) fn open(
        core: u32,
        epoch: u64,
        [qps, cold, cqs, srqs, rings]: [OwnedFd; CORE_FILES],
        limits: &Limits,
    ) -> Result<(Self, Found), ArenaError> {
        let [qp, beside, cq, srq, ring] = ids(core, epoch);
        let (qps, found_qps) = PairArena::open([qp, beside], [qps, cold], limits.qps)?;
        let (cqs, found_cqs) = SlotArena::open(cq, cqs, limits.cqs)?;
        let (srqs, found_srqs) = SlotArena::open(srq, srqs, limits.srqs)?;
        let rings = RangeArena::open(ring, rings, self::rings(limits))?;
        let found = Found {
            qps: found_qps,
            cqs: found_cqs,
            srqs: found_srqs,
        };
        let arenas = CoreArenas {
            qps,
            cqs,
            srqs,
            rings,
        };
        Ok((arenas, found))
    }

    /// From now on everything stays when its owners are dropped.
    pub(crate) fn seal(&self) {
        self.qps.seal();
        self.cqs.seal();
        self.srqs.seal();
        self.rings.seal();
    }

    /// Everything was taken over: dropping an owner frees its record again.
    pub(crate) fn unseal(&self) {
        self.qps.unseal();
        self.cqs.unseal();
        self.srqs.unseal();
        self.rings.unseal();
    }

    /// The files, in the order of [`ids`].
    pub(crate) fn files(&self) -> io::Result<[OwnedFd; CORE_FILES]> {
        let [qps, cold] = self.qps.files()?;
        Ok([
            qps,
            cold,
            self.cqs.fd().try_clone_to_owned()?,
            self.srqs.fd().try_clone_to_owned()?,
            self.rings.fd().try_clone_to_owned()?,
        ])
    }

    /// Empty arenas for as many objects as there may be.
    pub(crate) fn create(core: u32, epoch: u64, limits: &Limits) -> Result<Self, ArenaError> {
        let [qp, beside, cq, srq, ring] = ids(core, epoch);
        Ok(CoreArenas {
            qps: PairArena::create([qp, beside], limits.qps)?,
            cqs: SlotArena::create(cq, limits.cqs)?,
            srqs: SlotArena::create(srq, limits.srqs)?,
            rings: RangeArena::create(ring, rings(limits))?,
        })
    }
}

/// Of a QP that draws from no SRQ.
pub(crate) const NO_SRQ: u32 = u32::MAX;
/// Of an SRQ that is no XRC SRQ: domains count from 1 on.
pub(crate) const NO_XRCD: u32 = 0;
/// Of a QP whose completions, or some of them, go to no CQ of its own.
pub(crate) const NO_CQ: u32 = u32::MAX;
/// Of an XRC target QP: it is of no client, but of all that hold it.
pub const NO_CLIENT: u32 = u32::MAX;

record! {
    /// Who a QP is.
    #[derive(Copy, Clone, Debug)]
    pub(crate) struct Identity {
        pub qpn: u32,
        pub handle: u32,
        pub client: u32,
        pub pd: u32,
        pub send_cq: u32,
        pub recv_cq: u32,
        /// Slot of the SRQ it draws receive WQEs from, on the same core, or [`NO_SRQ`].
        pub srq: u32,
        /// Protection domain of the memory that receive WQEs name: that of the SRQ, if it is on one.
        pub recv_pd: u32,
        pub sig_all: bool,
        /// The port of its device.
        pub port: u16,
    }
}

impl Identity {
    /// Flags of its send work requests, whatever each of them says.
    #[inline]
    pub fn always(&self) -> SendFlags {
        match self.sig_all {
            true => SendFlags::SIGNALED,
            false => SendFlags::NONE,
        }
    }
}

record! {
    /// A work queue of the client's region, and how far it was consumed.
    #[derive(Copy, Clone, Debug)]
    pub(crate) struct Cursor {
        /// Where the queue stands in the region.
        pub offset: u64,
        /// Units, a power of two.
        pub depth: u32,
        /// Next unit to take.
        pub next: u32,
    }
}

record! {
    /// A path, or none: [`Path`] in a form that is the same in every process.
    #[derive(Copy, Clone, Debug, Default)]
    pub(crate) struct PathRecord {
        set: bool,
        direct: bool,
        has_vlan: bool,
        hop_limit: u8,
        traffic_class: u8,
        pub port: u16,
        vlan: u16,
        udp_source: u16,
        flow_label: u32,
        local_ip: [u8; 16],
        remote_ip: [u8; 16],
        local_mac: [u8; 6],
        remote_mac: [u8; 6],
    }
}

impl From<&Path> for PathRecord {
    fn from(path: &Path) -> Self {
        let Path {
            port,
            local_ip,
            remote_ip,
            local_mac,
            remote_mac,
            vlan,
            hop_limit,
            traffic_class,
            flow_label,
            udp_source,
            direct,
        } = *path;
        PathRecord {
            set: true,
            direct,
            has_vlan: vlan.is_some(),
            hop_limit,
            traffic_class,
            port,
            vlan: vlan.unwrap_or(0),
            udp_source,
            flow_label,
            local_ip,
            remote_ip,
            local_mac,
            remote_mac,
        }
    }
}

impl PathRecord {
    /// Whether each names the other, and both are set.
    #[inline]
    pub fn is_reverse_of(&self, other: &PathRecord) -> bool {
        self.set && other.set && self.local_ip == other.remote_ip && self.remote_ip == other.local_ip
    }

    /// The path, if there is one.
    pub fn path(&self) -> Option<Path> {
        self.set.then_some(Path {
            port: self.port,
            local_ip: self.local_ip,
            remote_ip: self.remote_ip,
            local_mac: self.local_mac,
            remote_mac: self.remote_mac,
            vlan: self.has_vlan.then_some(self.vlan),
            hop_limit: self.hop_limit,
            traffic_class: self.traffic_class,
            flow_label: self.flow_label,
            udp_source: self.udp_source,
            direct: self.direct,
        })
    }
}

record! {
    /// Events that the control thread has not been told of yet.
    #[derive(Copy, Clone, Debug, Default)]
    pub(crate) struct Pending {
        /// Bits of [`rnic_abi::event_kind`].
        pub kinds: u32,
        /// Cause of the first error.
        pub cause: Cause,
    }
}

impl Pending {
    /// Notes further events. The cause is that of the first error, whatever else is pending.
    pub(super) fn note(&mut self, kinds: u32, cause: Cause) {
        if kinds & event_kind::ERRORS != 0 && self.kinds & event_kind::ERRORS == 0 {
            self.cause = cause;
        }
        self.kinds |= kinds;
    }
}

record! {
    /// What a QP has counted.
    #[derive(Copy, Clone, Debug, Default)]
    pub(crate) struct QpCounters {
        pub sent_messages: u64,
        pub received_packets: u64,
        pub dropped_packets: u64,
        pub retries: u64,
    }
}

record! {
    /// A send WQE that cannot be executed; its turn comes when all before it are complete.
    #[derive(Copy, Clone, Debug, Default)]
    pub(crate) struct BadWr {
        /// There is one.
        pub set: bool,
        pub wr_id: u64,
        pub cause: Cause,
    }
}

record! {
    /// The position of the sub-ring at which the QP's last completion stands: written before the completion is, so
    /// that whoever finds the record knows where it must be.
    #[derive(Copy, Clone, Debug, Default)]
    pub(crate) struct Placed {
        pub send: u32,
        pub recv: u32,
    }
}

record! {
    /// A QP: what of it outlives the process.
    ///
    /// The order of stores in a pass is: payload; [`Placed`]; the CQE at that position; the tail of the CQ, which
    /// commits it; the transport's record; and in a later call, perhaps a later pass, the ACK. Whoever takes over
    /// between two passes finds a QP that has done all of it or nothing. (Between the commit and the transport's
    /// record lie a few instructions: a daemon killed there finds the committed position in `placed`, one beyond
    /// which the tail stands.)
    #[derive(Copy, Clone, Debug)]
    pub(crate) struct QpRecord {
        pub rc: RcQp,
        pub id: Identity,
        /// IPv4 identification of the next frame.
        pub ident: u16,
        pub placed: Placed,
        pub sq: Cursor,
        pub rq: Cursor,
        pub counters: QpCounters,
        pub bad: BadWr,
        pub pending: Pending,
        // From here on: what few packets need.
        pub path: PathRecord,
        /// Why it is in the error state.
        pub cause: Cause,
        /// Where the send records lie in the core's `rings`; `sq.depth` of them.
        pub sends: u64,
        /// Where the private WQE copies lie; `sq.depth` units.
        pub units: u64,
    }
}

record! {
    /// What of a QP most have no use for most of the time: it takes memory when it is used.
    #[derive(Clone, Debug)]
    pub(crate) struct QpBeside {
        /// READs and atomics of its peer.
        pub cold: Cold,
        /// Private copy of the receive WQE in progress, of a message of several packets or with several entries.
        pub recv: [Unit; RECV_UNITS],
    }
}

/// Where the records of QPs lie.
pub(crate) type QpArena = PairArena<QpRecord, QpBeside>;

/// The owner of a QP's records.
pub(crate) type QpBox = PairBox<QpRecord, QpBeside>;

impl QpRecord {
    /// Bytes that every packet needs.
    pub const HOT: [Range<usize>; 3] = {
        let [most, attributes] = RcQp::HOT;
        [
            most,
            attributes,
            offset_of!(QpRecord, id)..offset_of!(QpRecord, path),
        ]
    };

    /// Slot of the SRQ it draws from, if it does.
    pub fn srq(&self) -> Option<u32> {
        (self.id.srq != NO_SRQ).then_some(self.id.srq)
    }
}

impl Record for Unit {
    fn invalid(_bytes: &[u8]) -> Option<FieldPath> {
        // Sixty-four bytes, whatever they are: a client wrote them. They are checked as a WQE.
        None
    }
}

record! {
    /// An SRQ: what of it outlives the process.
    #[derive(Copy, Clone, Debug)]
    pub(crate) struct SrqRecord {
        pub number: u32,
        pub handle: u32,
        pub client: u32,
        pub pd: u32,
        pub ring: Cursor,
        /// Units of each WQE.
        pub stride: u32,
        /// XRC domain of an XRC SRQ, else [`NO_XRCD`].
        pub xrcd: u32,
        /// Slot of the CQ that receives of an XRC SRQ complete to.
        pub cq: u32,
        /// SRQ_LIMIT_REACHED is due once fewer WQEs are posted; 0 when it is not armed.
        pub limit: u32,
        /// Its ring was forged: no WQE is taken from it any more.
        pub failed: bool,
        pub pending: Pending,
    }
}

record! {
    /// One core's sub-ring of a CQ: what of it outlives the process.
    #[derive(Copy, Clone, Debug)]
    pub(crate) struct CqRecord {
        /// Where the CQ stands in the region, and how many entries its sub-rings have.
        pub place: CqPlace,
        pub subring: u32,
        pub handle: u32,
        pub client: u32,
        pub number: u32,
        /// Position of the next completion.
        pub next: u32,
        /// The consumer's index when it was last looked at.
        pub seen_head: u32,
        /// Overflown; reported once.
        pub broken: bool,
        /// CQ_ERR is to be raised.
        pub error_pending: bool,
        /// Completions since the last look at the arm word.
        pub fresh: bool,
        /// One of them was solicited.
        pub solicited: bool,
        /// It has a completion channel.
        pub channel: bool,
        /// Moderation: an armed CQ wakes its client after so many completions, or so many microseconds after the first of
        /// them.
        pub count: u16,
        pub period: u16,
        /// Position up to which the client was woken, or was not waiting.
        pub told: u32,
        /// When it is to be woken although there are fewer completions.
        pub due: Time,
    }
}

record! {
    /// Offset and depth of a CQ in one word, which a resize changes at once: whoever takes over finds the old or the new.
    #[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
    pub(crate) struct CqPlace {
        /// The offset, a multiple of a line, with the depth's logarithm in the bits below.
        word: u64,
    }
}

impl CqPlace {
    const LOG: u64 = LINE as u64 - 1;

    /// A CQ whose sub-rings have `depth` entries; `None` when the depth is no power of two up to 2^24, or the offset no
    /// multiple of a line.
    pub fn new(offset: u64, depth: u32) -> Option<Self> {
        let good = depth.is_power_of_two() && depth <= 1 << 24 && offset & Self::LOG == 0;
        good.then(|| CqPlace {
            word: offset | u64::from(depth.trailing_zeros()),
        })
    }

    /// Where it stands in the region.
    #[inline]
    pub const fn offset(self) -> u64 {
        self.word & !Self::LOG
    }

    /// Entries of each sub-ring: a power of two.
    #[inline]
    pub const fn depth(self) -> u32 {
        1 << (self.word & 31)
    }

    /// Whether the word is one that [`CqPlace::new`] makes.
    pub fn is_sound(self) -> bool {
        Self::new(self.offset(), self.depth()) == Some(self)
    }
}

#[cfg(test)]
mod tests {
    use rnic_transport::Check;

    use super::*;

    #[test]
    fn the_cause_that_is_pending_is_that_of_the_first_error_whatever_else_was_noted() {
        let mut pending = Pending::default();
        pending.note(event_kind::COMM_EST, Cause::default());
        pending.note(event_kind::QP_ACCESS_ERR, Cause::of(Check::Access));
        pending.note(event_kind::QP_FATAL, Cause::of(Check::SendQueue));
        let kinds = event_kind::COMM_EST | event_kind::QP_ACCESS_ERR | event_kind::QP_FATAL;
        assert_eq!((pending.kinds, pending.cause.check), (kinds, Check::Access));
    }
}
