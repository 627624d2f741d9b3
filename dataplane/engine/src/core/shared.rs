//! What other threads see of a poll core.
use std::{
    io,
    os::fd::OwnedFd,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering, fence},
    },
};

use crossbeam_queue::ArrayQueue;
use crossbeam_utils::CachePadded;
use rnic_wire::ParseError;
use rustix::{
    event::{EventfdFlags, epoll, eventfd},
    io::{read, write},
};

use crate::{frame::Frame, port::PortStats};

/// Commands that can wait for a core.
pub(crate) const COMMANDS: usize = 1024;
/// Messages that can wait for the control thread.
pub(crate) const MESSAGES: usize = 4096;
/// Places kept free for answers: a core takes a command only when its answer has room.
pub(super) const RESERVED: usize = 64;
/// Frames that can wait to be handed over.
const INBOUND: usize = 1024;

/// A frame for another core.
pub(crate) enum Handoff {
    /// Received on `port`, for a QP of that core. `direct` frames were built by a core of this appliance.
    Received {
        /// Port index.
        port: u16,
        /// The frame.
        frame: Frame,
        /// It did not come through a port.
        direct: bool,
    },
    /// A copy of a multicast datagram, for the attached QPs of that core.
    Copied {
        /// Port index.
        port: u16,
        /// The frame.
        frame: Frame,
        /// It did not come through a port.
        direct: bool,
    },
    /// To be sent on `port`, of which that core has a queue.
    Send {
        /// Port index.
        port: u16,
        /// The frame.
        frame: Frame,
    },
}

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// What a core has counted. Names are those shown to users.
        #[derive(Clone, Debug, Default)]
        pub struct CoreCounters {
            $($(#[$doc])* pub $name: u64,)*
            /// Malformed frames by [`ParseError::index`].
            pub malformed: [u64; ParseError::NAMES.len()],
        }

        impl CoreCounters {
            /// Every counter with its name.
            pub fn named(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
                let own = [$((stringify!($name), self.$name),)*];
                own.into_iter().chain(ParseError::NAMES.iter().copied().zip(self.malformed))
            }

            fn values(&self) -> impl Iterator<Item = u64> + '_ {
                self.named().map(|(_, value)| value)
            }

            fn from_values(mut values: impl Iterator<Item = u64>) -> Self {
                let mut next = || values.next().unwrap_or(0);
                let mut c = CoreCounters { $($name: next(),)* malformed: [0; ParseError::NAMES.len()] };
                c.malformed.fill_with(next);
                c
            }
        }
    };
}

counters! {
    /// RoCE packets received, before any check.
    rx_roce,
    /// RoCE packets sent.
    tx_roce,
    /// Messages and packets delivered without frames.
    direct_packets,
    /// Wrong ICRC.
    icrc_errors,
    /// No such QP.
    unknown_qp,
    /// Source or destination address, VLAN or port is not the QP's.
    address_mismatch,
    /// P_Key is not the default partition's.
    pkey_mismatch,
    /// QP0 and QP1: not served.
    special_qp,
    /// Multicast datagrams for a group that no QP of the port is attached to.
    no_mcast_group,
    /// A reserved opcode of a class the QP is not of.
    reserved_opcode,
    /// Packets before it are missing.
    out_of_order,
    /// Seen before.
    duplicate,
    /// Answered by an RNR NAK.
    rnr_nak_sent,
    /// Refused with a NAK or a failed completion.
    refused,
    /// Of UC messages that were dropped as a whole, since part of them was missing.
    message_lost,
    /// UC messages and datagrams dropped for want of a receive WQE.
    no_receive_wqe,
    /// UC messages and datagrams dropped for another reason: key, access, a receive WQE that is too short.
    message_refused,
    /// Datagrams without the Q_Key of their QP.
    qkey_mismatch,
    /// Without effect on the QP, by its state machine.
    no_effect,
    /// Frames retransmitted.
    retransmitted,
    /// Frames for another core that its queue had no room for.
    handoff_dropped,
    /// Frames for the slow path that the control thread had no room for.
    slow_path_dropped,
    /// Frames of the slow path that a port had no room for.
    slow_path_tx_dropped,
    /// Packets not sent because the payload could not be read.
    gather_errors,
    /// Objects given up while all pages were on their way: they waited on their own links.
    retired_without_page,
}

/// What a port has counted about congestion, by the names of `rdma statistic`.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub struct CongestionCounters {
    /// Packets for its QPs that arrived marked "congestion experienced".
    pub np_ecn_marked_roce_packets: u64,
    /// CNPs sent.
    pub np_cnp_sent: u64,
    /// CNPs that a QP with a reaction point has taken.
    pub rp_cnp_handled: u64,
    /// CNPs to QPs without one, or not in a state to send.
    pub rp_cnp_ignored: u64,
}

impl CongestionCounters {
    /// Every counter with its name.
    pub fn named(&self) -> [(&'static str, u64); 4] {
        [
            ("np_ecn_marked_roce_packets", self.np_ecn_marked_roce_packets),
            ("np_cnp_sent", self.np_cnp_sent),
            ("rp_cnp_handled", self.rp_cnp_handled),
            ("rp_cnp_ignored", self.rp_cnp_ignored),
        ]
    }

    pub(crate) fn and(self, other: Self) -> Self {
        CongestionCounters {
            np_ecn_marked_roce_packets: self.np_ecn_marked_roce_packets + other.np_ecn_marked_roce_packets,
            np_cnp_sent: self.np_cnp_sent + other.np_cnp_sent,
            rp_cnp_handled: self.rp_cnp_handled + other.rp_cnp_handled,
            rp_cnp_ignored: self.rp_cnp_ignored + other.rp_cnp_ignored,
        }
    }
}

/// State of a core, for users.
#[derive(Clone, Debug)]
pub struct CoreStatus {
    /// `running`, `sleeping` or `stopped`.
    pub state: &'static str,
    /// The epoch it last reported; 0 while offline.
    pub epoch: u64,
    /// TSC cycles of passes that found work.
    pub busy_cycles: u64,
    /// TSC cycles of the others.
    pub idle_cycles: u64,
    /// What it has counted.
    pub counters: CoreCounters,
}

/// The shared part of a core.
pub(crate) struct Shared {
    pub inbound: ArrayQueue<Handoff>,
    /// Set while the core sleeps or is about to. Whoever gives it something looks here.
    pub sleeping: CachePadded<AtomicBool>,
    /// Wakes the core; the daemon's own, no client has it.
    pub wake: OwnedFd,
    /// What the core sleeps on: `wake`, and each client's wake socket.
    pub epoll: OwnedFd,
    /// Wakes the control thread.
    pub control: Arc<ControlWake>,
    pub busy_cycles: AtomicU64,
    pub idle_cycles: AtomicU64,
    counters: Vec<AtomicU64>,
    ports: Vec<[AtomicU64; 6]>,
    congestion: Vec<[AtomicU64; 4]>,
}

/// The control thread's bell: a descriptor to sleep on, written at most once a sleep. While the thread is awake the
/// bell counts as rung, so that cores make no system call.
///
/// *The handshake*: the thread takes the ring back, fences, looks once more at what cores have queued and sleeps; a core
/// queues, fences and rings. One of the two sees the other.
pub(crate) struct ControlWake {
    pub fd: OwnedFd,
    pub rung: CachePadded<AtomicBool>,
}

impl ControlWake {
    pub fn new() -> io::Result<Self> {
        let fd = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?;
        Ok(ControlWake {
            fd,
            rung: CachePadded::new(AtomicBool::new(true)),
        })
    }

    pub fn ring(&self) {
        fence(Ordering::SeqCst);
        if !self.rung.load(Ordering::Relaxed) && !self.rung.swap(true, Ordering::AcqRel) {
            let _ = write(&self.fd, &1u64.to_ne_bytes());
        }
    }

    /// From now on cores ring. What they have queued before must be looked at before the thread sleeps.
    pub fn arm(&self) {
        self.rung.store(false, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    /// From now on they do not.
    pub fn disarm(&self) {
        if self.rung.swap(true, Ordering::AcqRel) {
            let _ = read(&self.fd, &mut [0u8; 8]);
        }
    }
}

impl Shared {
    pub fn new(control: Arc<ControlWake>, ports: usize) -> io::Result<Self> {
        let wake = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?;
        let poller = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        epoll::add(
            &poller,
            &wake,
            epoll::EventData::new_u64(0),
            epoll::EventFlags::IN,
        )?;
        let count = CoreCounters::default().named().count();
        Ok(Shared {
            inbound: ArrayQueue::new(INBOUND),
            sleeping: CachePadded::new(AtomicBool::new(false)),
            wake,
            epoll: poller,
            control,
            busy_cycles: AtomicU64::new(0),
            idle_cycles: AtomicU64::new(0),
            counters: (0..count).map(|_| AtomicU64::new(0)).collect(),
            ports: (0..ports).map(|_| Default::default()).collect(),
            congestion: (0..ports).map(|_| Default::default()).collect(),
        })
    }

    /// Wakes the core if it sleeps. After something was put into one of its queues.
    pub fn kick(&self) {
        fence(Ordering::SeqCst);
        if self.sleeping.load(Ordering::Relaxed) {
            let _ = write(&self.wake, &1u64.to_ne_bytes());
        }
    }

    pub fn publish_counters(&self, counters: &CoreCounters) {
        for (shared, value) in self.counters.iter().zip(counters.values()) {
            shared.store(value, Ordering::Relaxed);
        }
    }

    pub fn counters(&self) -> CoreCounters {
        CoreCounters::from_values(self.counters.iter().map(|c| c.load(Ordering::Relaxed)))
    }

    pub fn publish_port(&self, port: usize, s: PortStats) {
        let values = [
            s.rx_frames,
            s.rx_bytes,
            s.rx_dropped,
            s.tx_frames,
            s.tx_bytes,
            s.tx_dropped,
        ];
        for (shared, value) in self.ports[port].iter().zip(values) {
            shared.store(value, Ordering::Relaxed);
        }
    }

    pub fn publish_congestion(&self, port: usize, counters: &CongestionCounters) {
        for (shared, (_, value)) in self.congestion[port].iter().zip(counters.named()) {
            shared.store(value, Ordering::Relaxed);
        }
    }

    pub fn congestion(&self, port: usize) -> CongestionCounters {
        let v = |i: usize| self.congestion[port][i].load(Ordering::Relaxed);
        CongestionCounters {
            np_ecn_marked_roce_packets: v(0),
            np_cnp_sent: v(1),
            rp_cnp_handled: v(2),
            rp_cnp_ignored: v(3),
        }
    }

    pub fn port(&self, port: usize) -> PortStats {
        let v = |i: usize| self.ports[port][i].load(Ordering::Relaxed);
        PortStats {
            rx_frames: v(0),
            rx_bytes: v(1),
            rx_dropped: v(2),
            tx_frames: v(3),
            tx_bytes: v(4),
            tx_dropped: v(5),
        }
    }
}
