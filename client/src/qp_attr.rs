//! What a QP is made with, what of it a query tells, and what is changed of it.
use rnic_abi::{Av, HandleArg, Op, QpAttrs, QpInitAttrs, QueryQpReply, qp_features, qp_mask};

use crate::session::Session;
use crate::{Access, AddressVector, Cause, Error, Mtu, QpState, QpType, Result};

/// The attributes of a QP as the daemon has them now.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct QpAttr {
    /// State.
    pub state: QpState,
    /// Why it failed, in the error state.
    pub cause: Option<Cause>,
    /// In SQD: something that was begun is not done yet.
    pub sq_draining: bool,
    /// SQ_DRAINED was asked for when it went to SQD.
    pub notify_drained: bool,
    /// Path MTU, once it was set.
    pub path_mtu: Option<Mtu>,
    /// The path to the peer, once it was set.
    pub path: Option<AddressVector>,
    /// QPN of the peer.
    pub dest_qpn: u32,
    /// PSN expected next.
    pub rq_psn: u32,
    /// PSN sent next.
    pub sq_psn: u32,
    /// What the peer may do.
    pub access: Access,
    /// Q_Key (UD).
    pub qkey: u32,
    /// Index of the P_Key; 0.
    pub pkey_index: u16,
    /// Port, once it was set; 1.
    pub port: u8,
    /// Exponent of the local ACK timeout, 4.096 µs × 2^timeout.
    pub timeout: u8,
    /// Retries without progress.
    pub retry_cnt: u8,
    /// RNR retries; 7 is for ever.
    pub rnr_retry: u8,
    /// Code of the time the peer is told to wait when no receive is posted.
    pub min_rnr_timer: u8,
    /// READs and atomics outstanding as requester.
    pub max_rd_atomic: u8,
    /// READs and atomics outstanding as responder.
    pub max_dest_rd_atomic: u8,
    /// `enum ibv_mig_state`: 0, migrated.
    pub path_mig_state: u8,
    /// Lost packets of WRITEs are sent again alone, as both ends have agreed.
    pub selective_retransmit: bool,
    /// What it was made with.
    pub init: QpInitAttr,
}

/// What a QP was made with, in the sizes it has.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct QpInitAttr {
    /// Service type.
    pub qp_type: QpType,
    /// Units of 64 bytes of the send queue.
    pub sq_units: u32,
    /// Units of the receive queue; 0 when it draws from an SRQ.
    pub rq_units: u32,
    /// Every send is signalled.
    pub sq_sig_all: bool,
    /// It draws its receives from an SRQ.
    pub uses_srq: bool,
}

impl QpAttr {
    /// The attributes of a QP, or of a target QP, of this handle.
    pub(crate) fn query(session: &Session, handle: u32) -> Result<QpAttr> {
        let arg = HandleArg { handle, reserved: 0 };
        QpAttr::from_abi(&session.control.request(Op::QueryQp, &arg)?)
    }

    fn from_abi(reply: &QueryQpReply) -> Result<QpAttr> {
        let QueryQpReply { attrs, cause, init } = reply;
        let unknown = |what: &str, code: u32| Error::Protocol(format!("a QP {what} of {code}"));
        let state = QpState::from_code(attrs.qp_state);
        Ok(QpAttr {
            state: state.ok_or_else(|| unknown("state", attrs.qp_state.into()))?,
            cause: Cause::from_abi(*cause),
            sq_draining: attrs.sq_draining != 0,
            notify_drained: attrs.en_sqd_async_notify != 0,
            path_mtu: Mtu::from_code(attrs.path_mtu.into()),
            path: (attrs.ah_attr != Av::default()).then(|| AddressVector::from_abi(&attrs.ah_attr)),
            dest_qpn: attrs.dest_qp_num,
            rq_psn: attrs.rq_psn,
            sq_psn: attrs.sq_psn,
            access: Access(attrs.qp_access_flags),
            qkey: attrs.qkey,
            pkey_index: attrs.pkey_index,
            port: attrs.port_num,
            timeout: attrs.timeout,
            retry_cnt: attrs.retry_cnt,
            rnr_retry: attrs.rnr_retry,
            min_rnr_timer: attrs.min_rnr_timer,
            max_rd_atomic: attrs.max_rd_atomic,
            max_dest_rd_atomic: attrs.max_dest_rd_atomic,
            path_mig_state: attrs.path_mig_state,
            selective_retransmit: attrs.features & qp_features::SELECTIVE_RETRANSMIT != 0,
            init: QpInitAttr::from_abi(init).ok_or_else(|| unknown("type", init.qp_type))?,
        })
    }
}

impl QpInitAttr {
    fn from_abi(init: &QpInitAttrs) -> Option<QpInitAttr> {
        Some(QpInitAttr {
            qp_type: QpType::from_code(init.qp_type)?,
            sq_units: init.sq_units,
            rq_units: init.rq_units,
            sq_sig_all: init.sq_sig_all != 0,
            uses_srq: init.srq != 0,
        })
    }
}

/// A change of a QP's attributes ([`Qp::modify`](crate::Qp::modify)): those named by its methods, and no others. Which a
/// transition needs and which it permits is the table of the specification (IBTA 11.2.5.2); the daemon's refusal names the
/// first that is wrong.
///
/// ```no_run
/// # use rnic::{QpChange, QpState};
/// # fn drain(qp: &rnic::Qp) -> rnic::Result<()> {
/// qp.modify(QpChange::to(QpState::Sqd).notify_drained(true))?;
/// // … when SQ_DRAINED has come:
/// qp.modify(QpChange::within().timeout(16))?;
/// qp.modify(QpChange::to(QpState::Rts))
/// # }
/// ```
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub struct QpChange {
    pub(crate) mask: u32,
    pub(crate) attrs: QpAttrs,
}

macro_rules! setters {
    ($($(#[$doc:meta])* $name:ident: $ty:ty => $field:ident = $value:expr, $mask:ident;)*) => {
        impl QpChange {$(
            $(#[$doc])*
            pub fn $name(mut self, $name: $ty) -> Self {
                self.attrs.$field = $value;
                self.mask |= qp_mask::$mask;
                self
            }
        )*}
    };
}

impl QpChange {
    /// To another state, or to the one it is in.
    pub fn to(state: QpState) -> QpChange {
        QpChange::default().state(state)
    }

    /// Within the state it is in.
    pub fn within() -> QpChange {
        QpChange::default()
    }
}

setters! {
    /// The state it goes to.
    state: QpState => qp_state = state as u8, STATE;
    /// The state it is believed to be in; refused if it is in another.
    cur_state: QpState => cur_qp_state = cur_state as u8, CUR_STATE;
    /// To SQD: whether SQ_DRAINED is raised when everything begun is done.
    notify_drained: bool => en_sqd_async_notify = notify_drained.into(), EN_SQD_ASYNC_NOTIFY;
    /// What the peer may do, from its next request on.
    access: Access => qp_access_flags = access.bits(), ACCESS_FLAGS;
    /// Index of the P_Key; only 0 there is.
    pkey_index: u16 => pkey_index = pkey_index, PKEY_INDEX;
    /// The port; only 1 there is.
    port: u8 => port_num = port, PORT;
    /// Q_Key of the datagrams it takes (UD).
    qkey: u32 => qkey = qkey, QKEY;
    /// The path to the peer.
    path: AddressVector => ah_attr = path.abi(), AV;
    /// Payload bytes of a packet; what the link's MTU lets through at most.
    path_mtu: Mtu => path_mtu = path_mtu as u8, PATH_MTU;
    /// Exponent of the local ACK timeout, 4.096 µs × 2^timeout; 0 is never, at most 31.
    timeout: u8 => timeout = timeout, TIMEOUT;
    /// Retries without progress, 0 to 7.
    retry_cnt: u8 => retry_cnt = retry_cnt, RETRY_CNT;
    /// RNR retries, 0 to 7; 7 is for ever.
    rnr_retry: u8 => rnr_retry = rnr_retry, RNR_RETRY;
    /// Code of the time the peer is told to wait when no receive is posted, 0 to 31.
    min_rnr_timer: u8 => min_rnr_timer = min_rnr_timer, MIN_RNR_TIMER;
    /// PSN expected first, 24 bits.
    rq_psn: u32 => rq_psn = rq_psn, RQ_PSN;
    /// PSN sent first, 24 bits.
    sq_psn: u32 => sq_psn = sq_psn, SQ_PSN;
    /// READs and atomics outstanding as requester.
    max_rd_atomic: u8 => max_rd_atomic = max_rd_atomic, MAX_QP_RD_ATOMIC;
    /// READs and atomics outstanding as responder.
    max_dest_rd_atomic: u8 => max_dest_rd_atomic = max_dest_rd_atomic, MAX_DEST_RD_ATOMIC;
    /// `enum ibv_mig_state`: only 0, migrated, since there are no alternate paths.
    path_mig_state: u8 => path_mig_state = path_mig_state, PATH_MIG_STATE;
    /// QPN of the peer.
    dest_qpn: u32 => dest_qp_num = dest_qpn, DEST_QPN;
    /// Lost packets of WRITEs are sent again alone: only if the peer does it too
    /// ([`ConnectOptions::selective_retransmit`](crate::ConnectOptions::selective_retransmit)).
    selective_retransmit: bool => features = if selective_retransmit { qp_features::SELECTIVE_RETRANSMIT } else { 0 }, FEATURES;
}
