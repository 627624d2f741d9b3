//! Changing a QP: checks, the way to the peer, its MAC address, then the core.

use std::time::Instant;

use rnic_abi::{
    Av, ModifyQp, QpAttrs, QpInitAttrs, QueryQpReply, qp_features::SELECTIVE_RETRANSMIT, qp_mask,
};
use rnic_engine::{
    command::{Path, QpChange, QpStatus},
    core::abi_cause,
};
use rnic_transport::{ModifyError, QpAttr, QpAttrMask, QpState, check_modify};
use rnic_wire::Mtu;
use rustix::io::Errno;

use crate::{
    control::Control,
    dispatch::Outcome,
    gid::GidHold,
    install::needs_no_core,
    objects::{Key, Qp, What, rights},
    ops::Work,
    refusal::{Refusal, Verb},
    route::{Route, route},
    session::Reply,
};

/// A QP that is being changed.
#[derive(Debug)]
pub struct Modify {
    qp: Key,
    attr: QpAttr,
    mask: QpAttrMask,
    /// The address vector, and the way it gave.
    path: Option<(Av, Route)>,
    /// Keeps the path's local address at its index, from the check on.
    gid: Option<GidHold>,
    /// The path that was given to the core.
    sent: Option<Path>,
}

impl Modify {
    /// The QP.
    pub fn qp(&self) -> Key {
        self.qp
    }

    /// That nobody answers for the next hop.
    pub fn silent(&self) -> Refusal {
        match self.path {
            Some((_, route)) => route.silent(),
            None => Refusal::invalid("modify_qp: no path to resolve"),
        }
    }
}

/// A state a client named.
fn state(field: &str, value: u8) -> Verb<QpState> {
    QpState::from_verbs(value).ok_or_else(|| {
        Refusal::invalid(format!(
            "attrs.{field} is {value}; it must be 0 (RESET) to 6 (ERR)"
        ))
    })
}

/// The attributes of a request, as far as its mask says.
fn attributes(attrs: &QpAttrs, mask: QpAttrMask) -> Verb<QpAttr> {
    let has = |bit| mask.contains(bit);
    let mut attr = QpAttr {
        qkey: attrs.qkey,
        rq_psn: attrs.rq_psn,
        sq_psn: attrs.sq_psn,
        dest_qpn: attrs.dest_qp_num,
        pkey_index: attrs.pkey_index,
        port: attrs.port_num,
        sqd_async_notify: attrs.en_sqd_async_notify != 0,
        max_rd_atomic: attrs.max_rd_atomic,
        max_dest_rd_atomic: attrs.max_dest_rd_atomic,
        min_rnr_timer: attrs.min_rnr_timer,
        timeout: attrs.timeout,
        retry_cnt: attrs.retry_cnt,
        rnr_retry: attrs.rnr_retry,
        path_mig_state: attrs.path_mig_state,
        ..QpAttr::default()
    };
    if has(QpAttrMask::STATE) {
        attr.state = state("qp_state", attrs.qp_state)?;
    }
    if has(QpAttrMask::CUR_STATE) {
        attr.cur_state = state("cur_qp_state", attrs.cur_qp_state)?;
    }
    if has(QpAttrMask::PORT) && attrs.port_num != 1 {
        return Err(Refusal::invalid(format!(
            "attrs.port_num is {}; a device has port 1 only",
            attrs.port_num
        )));
    }
    if has(QpAttrMask::PATH_MTU) {
        attr.path_mtu = Mtu::from_verbs(attrs.path_mtu).ok_or_else(|| {
            Refusal::invalid(format!(
                "attrs.path_mtu is {}; it must be 1 (256) to 5 (4096)",
                attrs.path_mtu
            ))
        })?;
    }
    if has(QpAttrMask::ACCESS_FLAGS) {
        let flags = attrs.qp_access_flags;
        attr.access = rights("attrs.qp_access_flags", flags)?;
    }
    if has(QpAttrMask::FEATURES) {
        let unknown = attrs.features & !SELECTIVE_RETRANSMIT;
        if unknown != 0 {
            return Err(Refusal::invalid(format!(
                "attrs.features has the unknown bits {unknown:#x}; 1 (selective retransmission) is known"
            )));
        }
        attr.selective = attrs.features & SELECTIVE_RETRANSMIT != 0;
    }
    Ok(attr)
}

fn refused(error: ModifyError) -> Refusal {
    let errno = match error {
        ModifyError::Unsupported { .. } => Errno::OPNOTSUPP,
        ModifyError::NotDrained { .. } => Errno::BUSY,
        _ => Errno::INVAL,
    };
    Refusal::new(errno, format!("modify_qp: {error}"))
}

impl Control {
    pub(crate) fn modify_qp(&mut self, conn: u32, arg: &ModifyQp) -> Verb<Outcome> {
        let key = self.find_qp(conn, arg.handle)?;
        let Some((qp, device)) = self.qp(key) else {
            return Err(Refusal::invalid("handle is of no QP"));
        };
        let mask = QpAttrMask::from_bits(arg.mask);
        let attr = attributes(&arg.attrs, mask)?;
        // To ERR it may always go: that is where the removal of its device has sent it. Anything else is refused for that,
        // and not for the state it is in since.
        if !(mask.contains(QpAttrMask::STATE) && attr.state == QpState::Err) {
            self.check_present(conn, device)?;
        }
        // The core checks again, against the state the QP is in by then: it may go to ERR by itself.
        let next = if mask.contains(QpAttrMask::STATE) {
            attr.state
        } else {
            qp.state
        };
        check_modify(qp.qp_type, qp.state, next, mask).map_err(refused)?;
        if qp.here.is_some() && needs_no_core(next) {
            return self.modify_here(key, &attr, mask).map(Outcome::Done);
        }
        self.answers(qp.core)?;
        let owner = &self.devices[device as usize];
        if mask.contains(QpAttrMask::PATH_MTU) && attr.path_mtu > owner.path_mtu {
            return Err(Refusal::invalid(format!(
                "attrs.path_mtu is {}, but the link MTU of {}, {}, lets {} through at most",
                attr.path_mtu.bytes(),
                owner.name,
                owner.mtu,
                owner.path_mtu.bytes()
            )));
        }
        let path = if mask.contains(QpAttrMask::AV) {
            let av = arg.attrs.ah_attr;
            Some((
                av,
                route(&self.devices, device, &av).map_err(|e| e.refusal(&self.devices))?,
            ))
        } else {
            None
        };
        let gid = path.and_then(|(av, _)| owner.gids.hold(av.sgid_index.into()));
        let target = path.and_then(|(_, route)| route.target());
        let op = self.begin(
            conn,
            Work::Modify(Box::new(Modify {
                qp: key,
                attr,
                mask,
                path,
                gid,
                sent: None,
            })),
        );
        match target {
            Some(target) if !self.is_known(&target) => {
                if let Err(refusal) = self.await_neighbour(op, target, Instant::now()) {
                    self.ops.take(op);
                    return Err(refusal);
                }
            }
            _ => self.send_change(op),
        }
        Ok(Outcome::Pending)
    }

    /// Changes a QP that no core has.
    fn modify_here(&mut self, key: Key, attr: &QpAttr, mask: QpAttrMask) -> Verb<Reply> {
        if let Some(object) = self.objects.peek_mut(key) {
            if let What::Qp(qp) = &mut object.what
                && let Some(here) = &mut qp.here
            {
                qp.state = here.modify(attr, mask).map_err(refused)?;
            }
            object.save();
        }
        Ok(Reply::default())
    }

    /// Hands a checked change to the QP's core.
    pub(crate) fn send_change(&mut self, number: u64) {
        let Some(op) = self.ops.take(number) else { return };
        let Work::Modify(mut modify) = op.work else { return };
        let Some((qp, _)) = self.qp(modify.qp) else { return };
        let (key, qpn) = (modify.qp, qp.qpn);
        let (attr, mask) = (modify.attr, modify.mask);
        let peer = if mask.contains(QpAttrMask::DEST_QPN) {
            attr.dest_qpn
        } else {
            qp.dest_qpn
        };
        if let Some((av, route)) = &modify.path {
            let Ok((mac, _)) = self.next_hop(route) else {
                return self.answer(op.conn, Err(modify.silent()));
            };
            modify.sent = Some(route.path(&self.devices, av, mac, qpn, peer));
        }
        let path = modify.sent;
        let work = Work::Modify(modify);
        self.ops.put_back(number, crate::ops::Op { work, ..op });
        self.change_on_core(number, key, QpChange { attr, mask, path });
    }

    /// The core has changed the QP, or refused.
    pub(crate) fn modified(
        &mut self,
        modify: Modify,
        result: Option<Result<QpState, ModifyError>>,
    ) -> Verb<Reply> {
        let state = match result {
            Some(result) => result.map_err(refused)?,
            None => return Err(Refusal::invalid("modify_qp: the QP is gone from its core")),
        };
        if let Some(What::Qp(qp)) = self.objects.peek_mut(modify.qp).map(|object| &mut object.what) {
            qp.state = state;
            if modify.mask.contains(QpAttrMask::DEST_QPN) {
                qp.dest_qpn = modify.attr.dest_qpn;
            }
            if let Some((av, route)) = modify.path {
                // The address it had before is let go of only now that its core uses the new one.
                (qp.av, qp.gid) = (Some(av), modify.gid);
                (qp.path, qp.hop) = (modify.sent, route.target());
            }
            if state == QpState::Reset {
                (qp.av, qp.gid, qp.dest_qpn) = (None, None, 0);
                (qp.path, qp.hop) = (None, None);
            }
            if modify.path.is_some() || state == QpState::Reset {
                self.follow(modify.qp);
            }
        }
        self.save(modify.qp);
        Ok(Reply::default())
    }

    /// The core has told a QP's attributes.
    pub(crate) fn queried(&mut self, key: Key, status: Option<QpStatus>) -> Verb<Reply> {
        let gone = || Refusal::invalid("query_qp: the QP is gone from its core");
        let status = status.ok_or_else(gone)?;
        match self.objects.peek_mut(key).map(|object| &mut object.what) {
            Some(What::Qp(qp)) => qp.state = status.attr.state,
            _ => return Err(gone()),
        }
        self.save(key);
        let (qp, _) = self.qp(key).ok_or_else(gone)?;
        let handle = |key: Key| self.objects.peek(key).map_or(0, |object| object.handle.0);
        Ok(Reply::new(&QueryQpReply {
            attrs: abi_attributes(&status.attr, qp.av),
            cause: abi_cause(&status.cause),
            init: QpInitAttrs {
                qp_type: qp.qp_type as u32,
                sq_units: status.sq_depth,
                rq_units: status.rq_depth,
                sq_sig_all: status.sig_all.into(),
                pd: qp.pd.map_or(0, handle),
                send_cq: qp.send_cq.map_or(0, handle),
                recv_cq: qp.recv_cq.map_or(0, handle),
                srq: qp.srq.map_or(0, handle),
            },
        }))
    }

    /// A QP and its device.
    fn qp(&self, key: Key) -> Option<(&Qp, u32)> {
        let object = self.objects.peek(key)?;
        match &object.what {
            What::Qp(qp) => Some((qp, object.device)),
            _ => None,
        }
    }
}

fn abi_attributes(attr: &QpAttr, av: Option<Av>) -> QpAttrs {
    QpAttrs {
        qp_state: attr.state as u8,
        cur_qp_state: attr.state as u8,
        path_mtu: attr.path_mtu.to_verbs(),
        en_sqd_async_notify: attr.sqd_async_notify.into(),
        port_num: attr.port,
        timeout: attr.timeout,
        retry_cnt: attr.retry_cnt,
        rnr_retry: attr.rnr_retry,
        min_rnr_timer: attr.min_rnr_timer,
        max_rd_atomic: attr.max_rd_atomic,
        max_dest_rd_atomic: attr.max_dest_rd_atomic,
        path_mig_state: attr.path_mig_state,
        pkey_index: attr.pkey_index,
        sq_draining: attr.sq_draining.into(),
        features: if attr.selective { SELECTIVE_RETRANSMIT } else { 0 },
        qp_access_flags: attr.access.bits().into(),
        qkey: attr.qkey,
        rq_psn: attr.rq_psn,
        sq_psn: attr.sq_psn,
        dest_qp_num: attr.dest_qpn,
        ah_attr: av.unwrap_or_default(),
    }
}

// The bits of clients' masks are those of the transport.
const _: () = assert!(
    qp_mask::AV == QpAttrMask::AV.bits()
        && qp_mask::DEST_QPN == QpAttrMask::DEST_QPN.bits()
        && qp_mask::FEATURES == QpAttrMask::FEATURES.bits()
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_count_only_with_their_mask_bit() {
        let attrs = QpAttrs {
            qp_state: 99,
            path_mtu: 9,
            qp_access_flags: 0xFFFF,
            port_num: 7,
            features: 7,
            ..QpAttrs::default()
        };
        assert!(attributes(&attrs, QpAttrMask::NONE).is_ok());
        for (bit, text) in [
            (QpAttrMask::STATE, "qp_state is 99"),
            (QpAttrMask::PATH_MTU, "path_mtu is 9"),
            (QpAttrMask::ACCESS_FLAGS, "0xffff"),
            (QpAttrMask::PORT, "port_num is 7"),
            (QpAttrMask::FEATURES, "unknown bits 0x6"),
        ] {
            let refusal = attributes(&attrs, bit).unwrap_err();
            assert!(refusal.text().contains(text), "{}", refusal.text());
        }
    }

    #[test]
    fn what_a_query_tells_can_be_asked_for_again() {
        let attrs = QpAttrs {
            qp_state: 3,
            cur_qp_state: 3,
            path_mtu: 3,
            port_num: 1,
            timeout: 14,
            retry_cnt: 7,
            qp_access_flags: 7,
            dest_qp_num: 0x123456,
            ..QpAttrs::default()
        };
        let all = QpAttrMask::from_bits(0x1F_FFFF);
        assert_eq!(abi_attributes(&attributes(&attrs, all).unwrap(), None), attrs);
    }
}
