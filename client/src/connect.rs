//! Connecting a QP: what the two sides tell each other, and the transitions that follow.
use rnic_abi::{Av, QpAttrs, qp_features, qp_mask};
use serde::{Deserialize, Serialize};

use crate::{Access, Context, Error, Gid, Mtu, QpState, QpType, Result};

/// What a peer must know to connect to a QP. Sent to it by any means; [`crate::exchange`] is one.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    /// [`Endpoint::VERSION`].
    pub version: u32,
    /// Number of the QP.
    pub qpn: u32,
    /// First PSN it sends.
    pub psn: u32,
    /// Its address.
    pub gid: Gid,
    /// Largest path MTU it can do, in bytes.
    pub mtu: Mtu,
    /// READs and atomics it takes at a time.
    pub rd_atomic: u8,
    /// What it offers to do beyond the specification, as bits: 1 is selective retransmission. What both offer is done.
    #[serde(default)]
    pub features: u8,
}

impl Endpoint {
    /// Version of this structure's serialised form.
    pub const VERSION: u32 = 1;

    pub(crate) fn of(context: &Context, qpn: u32, psn: u32, options: &ConnectOptions) -> Result<Endpoint> {
        let active = context.query_port()?.active_mtu;
        Ok(Endpoint {
            version: Self::VERSION,
            qpn,
            psn,
            gid: context.gid(options.gid_index)?.gid,
            mtu: options.mtu.map_or(active, |mtu| mtu.min(active)),
            rd_atomic: options.rd_atomic.min(clamp(context.attr().max_qp_rd_atom)),
            features: options.features(),
        })
    }
}

/// How to connect. The defaults are those of a wire with rare loss.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct ConnectOptions {
    /// Which of our GIDs to use; the peer's must be of the same address family.
    pub gid_index: u8,
    /// Largest path MTU to use; the smaller of both sides' is taken. `None` is the port's.
    pub mtu: Option<Mtu>,
    /// Exponent of the local ACK timeout: 4.096 µs × 2^timeout, 0 is never, at most 31.
    pub timeout: u8,
    /// Retries without progress, 0 to 7.
    pub retry_cnt: u8,
    /// Retries while the peer has no receive posted, 0 to 7; 7 is for ever.
    pub rnr_retry: u8,
    /// How long the peer is to wait when we have no receive posted: a code of 0 to 31 (IBTA table 45).
    pub min_rnr_timer: u8,
    /// READs and atomics outstanding at a time, in either direction; the device's and the peer's limits hold too.
    pub rd_atomic: u8,
    /// What the peer may do with our memory through this QP, where the region permits it too.
    pub access: Access,
    /// Traffic class: DSCP in the upper six bits. The lower two, ECN, are congestion control's: what is given here has no
    /// effect.
    pub traffic_class: u8,
    /// Service level, 0 to 7: the priority in the VLAN tag, where our GID has a VLAN.
    pub sl: u8,
    /// Hop limit; 0 means 64.
    pub hop_limit: u8,
    /// Flow label, 20 bits.
    pub flow_label: u32,
    /// Offers selective retransmission: lost packets of WRITEs are sent again, and those behind them not. It is done on RC, if
    /// the peer offers it too. Until a WRITE has completed, its memory may then show any part of it, and parts of WRITEs
    /// behind it: who waits for data by looking at memory leaves this off.
    pub selective_retransmit: bool,
}

impl Default for ConnectOptions {
    fn default() -> Self {
        ConnectOptions {
            gid_index: 0,
            mtu: None,
            timeout: 14,
            retry_cnt: 7,
            rnr_retry: 7,
            min_rnr_timer: 12,
            rd_atomic: 16,
            access: Access::LOCAL_WRITE | Access::REMOTE_WRITE | Access::REMOTE_READ | Access::REMOTE_ATOMIC,
            traffic_class: 0,
            sl: 0,
            hop_limit: 0,
            flow_label: 0,
            selective_retransmit: false,
        }
    }
}

/// A state to go to, and what is given on the way: mask and attributes.
pub(crate) type Transition = (QpState, u32, QpAttrs);

/// What a reliable QP does: send requests that are acknowledged, acknowledge those of others, or both.
#[derive(Copy, Clone, Debug)]
pub(crate) struct Side {
    pub asks: bool,
    pub answers: bool,
}

impl Side {
    /// That of an XRC target.
    pub const TARGET: Side = Side {
        asks: false,
        answers: true,
    };

    /// That of a QP of this type.
    pub fn of(qp_type: QpType) -> Side {
        Side {
            asks: matches!(qp_type, QpType::Rc | QpType::XrcIni),
            answers: qp_type == QpType::Rc,
        }
    }
}

impl ConnectOptions {
    /// What is offered, as bits.
    fn features(&self) -> u8 {
        match self.selective_retransmit {
            true => qp_features::SELECTIVE_RETRANSMIT,
            false => 0,
        }
    }

    /// The transition to INIT, with its mask.
    pub(crate) fn init_transition(&self) -> Transition {
        let attrs = QpAttrs {
            port_num: 1,
            qp_access_flags: self.access.bits(),
            ..QpAttrs::default()
        };
        let mask = qp_mask::PKEY_INDEX | qp_mask::PORT | qp_mask::ACCESS_FLAGS;
        (QpState::Init, mask, attrs)
    }

    /// The transitions to RTR and RTS, with their masks (IBTA table 91).
    pub(crate) fn transitions(
        &self,
        context: &Context,
        side: Side,
        ours: &Endpoint,
        peer: &Endpoint,
    ) -> Result<[Transition; 2]> {
        if peer.version != Endpoint::VERSION {
            return Err(Error::InvalidArgument(format!(
                "the peer's endpoint is of version {}, this library's of {}",
                peer.version,
                Endpoint::VERSION
            )));
        }
        if ours.gid.is_ipv4() != peer.gid.is_ipv4() {
            return Err(Error::InvalidArgument(format!(
                "our GID {} and the peer's {} are of different address families; choose another gid_index",
                ours.gid, peer.gid
            )));
        }
        let receive = QpAttrs {
            path_mtu: ours.mtu.min(peer.mtu) as u8,
            dest_qp_num: peer.qpn,
            rq_psn: peer.psn,
            max_dest_rd_atomic: ours.rd_atomic,
            features: ours.features & peer.features & qp_features::SELECTIVE_RETRANSMIT,
            min_rnr_timer: self.min_rnr_timer,
            ah_attr: Av {
                dgid: peer.gid.0,
                flow_label: self.flow_label,
                sgid_index: self.gid_index,
                hop_limit: self.hop_limit,
                traffic_class: self.traffic_class,
                sl: self.sl,
            },
            ..QpAttrs::default()
        };
        let send = QpAttrs {
            sq_psn: ours.psn,
            timeout: self.timeout,
            retry_cnt: self.retry_cnt,
            rnr_retry: self.rnr_retry,
            max_rd_atomic: self
                .rd_atomic
                .min(clamp(context.attr().max_qp_init_rd_atom))
                .min(peer.rd_atomic),
            ..QpAttrs::default()
        };
        let (mut rtr, mut rts) = (
            qp_mask::AV | qp_mask::PATH_MTU | qp_mask::DEST_QPN | qp_mask::RQ_PSN,
            qp_mask::SQ_PSN,
        );
        if side.answers {
            rtr |= qp_mask::MAX_DEST_RD_ATOMIC | qp_mask::MIN_RNR_TIMER;
            rts |= qp_mask::TIMEOUT;
        }
        if side.asks && side.answers && receive.features != 0 {
            rtr |= qp_mask::FEATURES;
        }
        if side.asks {
            rts |= qp_mask::TIMEOUT | qp_mask::RETRY_CNT | qp_mask::RNR_RETRY | qp_mask::MAX_QP_RD_ATOMIC;
        }
        Ok([(QpState::Rtr, rtr, receive), (QpState::Rts, rts, send)])
    }
}

fn clamp(limit: u32) -> u8 {
    limit.min(255) as u8
}
