//! Resource tracking, as `rdma resource` has it: who owns what, since when, in which state, used by how many.
//!
//! The answer comes in pages, so that neither other clients wait nor a message grows with the number of objects:
//! [`ResQuery::after`] of the next page is [`ResPage::next`] of the last. An object made or destroyed meanwhile may
//! be in the list or not; no other is missed or shown twice. Field names are part of the interface.

use rnic_engine::command::QpStatus;
use rnic_transport::{Access, Check};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::{
    admin::{AdminResponse, ok},
    congestion,
    control::Control,
    events::LastError,
    objects::{Key, Kind, Object, What},
    status::{CauseState, gid_text},
};

/// Objects of one page.
const PAGE: usize = 256;

/// A kind of resource.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ResKind {
    /// Queue pairs: `qpn`, `type`, `state`, `draining` (in SQD, until everything begun is done), `access`, `core`, `dest_qpn`, `sq_psn`, `rq_psn`, `path_mtu`, `pdn`, `send_cqn`, `recv_cqn`, `srqn`,
    /// `xrcdn`, `sent_messages`, `received_packets`, `dropped_packets`, `retries`, `congestion`
    /// (`off`, `fixed` or `dcqcn`), `rate_bps` (bits a second that it sends at most now, or null). An XRC target is of no
    /// process, but has `holders`: the processes that hold it.
    Qp,
    /// Completion queues: `cqn`, `state` (`ok`, `error`, or `resizing` until the client has read what was left in the old
    /// place), `depth`, `moderation_count`, `moderation_period_us`.
    Cq,
    /// Memory regions: `mrn`, `key`, `state` (`valid` or `invalid`), `iova`, `length`, `access` (rights joined by `|`, or
    /// `NONE`), `invalidatable`, `pdn`.
    Mr,
    /// Memory windows: `mwn`, `type` (1 or 2), `state` (`bound` or `unbound`), and of one that is bound `key`, `mr_key`,
    /// `addr`, `length`, `access`, of type 2 `qpn`; `pdn`.
    Mw,
    /// Protection domains: `pdn`.
    Pd,
    /// Shared receive queues: `srqn`, `state` (`ok` or `error`), `core`, `max_wr`, `limit` (0 when it is not armed), `pdn`; of an XRC SRQ
    /// also `xrcdn` and `cqn`.
    Srq,
    /// Address handles: `ahn`, `dgid`, `pdn`.
    Ah,
    /// XRC domains, once for each client that holds it: `xrcdn`, `core`, `holders` (how many there are), `dev` and `ino` of
    /// the file it stands for, or null.
    Xrcd,
    /// Completion channels.
    Channel,
    /// Clients (contexts): `session`, `state`, `objects`.
    Client,
}

/// What is to be shown.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ResQuery {
    /// Of which kind.
    pub kind: ResKind,
    /// Where the last page ended; 0 at first.
    #[serde(default)]
    pub after: u64,
    /// Only those of this process.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<i32>,
    /// Only the QP of this number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub qpn: Option<u32>,
}

/// A page. Each object has `device`, `pid`, `uid` and `comm` of its owner, `handle`, `age_ms`, `users` (objects that
/// depend on it), `last_error` (`check`, `psn`, `opcode`, `syndrome`, `ago_ms`, or null), and what [`ResKind`] says.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ResPage {
    /// The objects.
    pub objects: Vec<Value>,
    /// For [`ResQuery::after`] of the next page; none when this is the last.
    pub next: Option<u64>,
}

/// How many of each kind a device has: one line of `rnicctl res`, by the names of `rdma resource`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct ResSummary {
    pub device: String,
    pub pd: usize,
    pub cq: usize,
    pub qp: usize,
    pub mr: usize,
    pub mw: usize,
    pub srq: usize,
    pub ah: usize,
    pub channel: usize,
    /// XRC domains, once for each client that holds it.
    pub xrcd: usize,
    /// Clients; each may use every device.
    pub ctx: usize,
}

impl Control {
    /// Counts by device.
    pub(crate) fn res_summary(&self) -> Vec<ResSummary> {
        let name = |device: &crate::device::Device| ResSummary {
            device: device.name.clone(),
            ctx: self.by_index.len(),
            ..ResSummary::default()
        };
        let mut all: Vec<_> = self.devices.iter().map(name).collect();
        for (_, object) in self.objects.iter() {
            let Some(sum) = all.get_mut(object.device as usize) else {
                continue;
            };
            *match object.kind() {
                Kind::Pd => &mut sum.pd,
                Kind::Mr => &mut sum.mr,
                Kind::Channel => &mut sum.channel,
                Kind::Cq => &mut sum.cq,
                Kind::Qp => &mut sum.qp,
                Kind::Ah => &mut sum.ah,
                Kind::Srq => &mut sum.srq,
                Kind::Xrcd => &mut sum.xrcd,
                // The QP itself is among the QPs.
                Kind::Target => continue,
                Kind::Mw => &mut sum.mw,
            } += 1;
        }
        all
    }

    /// Shows a page: at once, or, of QPs, when their cores have told. `None` in the latter case.
    pub(crate) fn show_resources(&mut self, admin: u32, query: &ResQuery) -> Option<AdminResponse> {
        let kind = match query.kind {
            ResKind::Qp => Kind::Qp,
            ResKind::Cq => Kind::Cq,
            ResKind::Mr => Kind::Mr,
            ResKind::Pd => Kind::Pd,
            ResKind::Ah => Kind::Ah,
            ResKind::Channel => Kind::Channel,
            ResKind::Srq => Kind::Srq,
            ResKind::Xrcd => Kind::Xrcd,
            ResKind::Mw => Kind::Mw,
            ResKind::Client => return Some(ok(&self.clients(query))),
        };
        let (keys, next) = self.page(kind, query);
        if kind == Kind::Qp {
            self.ask_for_qps(admin, Some(next), keys);
            return None;
        }
        let objects = keys.iter().filter_map(|key| self.resource(*key, None));
        Some(ok(&ResPage {
            objects: objects.collect(),
            next,
        }))
    }

    /// The keys of a page, and where the next one begins.
    fn page(&self, kind: Kind, query: &ResQuery) -> (Vec<Key>, Option<u64>) {
        let wanted = |object: &Object| {
            let pid = query
                .pid
                .is_none_or(|pid| self.pid_of(object) == Some(pid) || self.holders_of(object).contains(&pid));
            let qpn = match (&object.what, query.qpn) {
                (_, None) => true,
                (What::Qp(qp), Some(qpn)) => qp.qpn == qpn,
                _ => false,
            };
            object.kind() == kind && pid && qpn
        };
        let rest = self
            .objects
            .iter()
            .filter(|(key, object)| u64::from(key.slot()) >= query.after && wanted(object))
            .map(|(key, _)| key);
        let mut keys: Vec<Key> = rest.take(PAGE + 1).collect();
        let next = (keys.len() > PAGE).then(|| keys.pop()).flatten();
        (keys, next.map(|key| key.slot().into()))
    }

    fn pid_of(&self, object: &Object) -> Option<i32> {
        Some(self.connections.get(&object.owner)?.session.peer.pid)
    }

    /// The processes that hold an XRC target QP.
    fn holders_of(&self, object: &Object) -> Vec<i32> {
        let What::Qp(qp) = &object.what else {
            return Vec::new();
        };
        let holders = qp.holders.iter().filter_map(|key| self.objects.peek(*key));
        holders.filter_map(|holder| self.pid_of(holder)).collect()
    }

    /// One object.
    pub(crate) fn resource(&self, key: Key, status: Option<&QpStatus>) -> Option<Value> {
        let object = self.objects.peek(key)?;
        let peer = self.connections.get(&object.owner).map(|c| &c.session.peer);
        let mut shown = json!({
            "device": self.devices.get(object.device as usize).map(|device| &device.name),
            "pid": peer.map(|peer| peer.pid),
            "uid": peer.map(|peer| peer.uid),
            "comm": peer.map(|peer| &peer.comm),
            "handle": object.handle.0,
            "age_ms": object.born.elapsed().as_millis() as u64,
            "users": self.objects.users(key),
            "last_error": last_error(object.last_error.as_ref(), status),
        });
        let number = |key: Key| match &self.objects.peek(key)?.what {
            What::Pd(pd) => Some(pd.number),
            What::Cq(cq) => Some(cq.number),
            What::Srq(srq) => Some(srq.number),
            What::Xrcd(xrcd) => Some(xrcd.number),
            _ => None,
        };
        let own = match &object.what {
            What::Pd(pd) => json!({"pdn": pd.number}),
            What::Channel(_) => json!({}),
            What::Cq(cq) => json!({
                "cqn": cq.number,
                "state": match cq.left {
                    _ if cq.failed => "error",
                    Some(_) => "resizing",
                    None => "ok",
                },
                "depth": cq.depth,
                "moderation_count": cq.moderation.0,
                "moderation_period_us": cq.moderation.1,
            }),
            What::Mr(mr) => json!({
                "mrn": mr.slot,
                "key": mr.key,
                "state": if self.engine.mrs().is_valid(mr.key) { "valid" } else { "invalid" },
                "iova": mr.part.iova,
                "length": mr.length,
                "access": rights(mr.part.access),
                "invalidatable": mr.part.invalidatable,
                "pdn": number(mr.pd),
            }),
            What::Mw(mw) => {
                let bound = self.engine.mrs().binding(mw.number);
                json!({
                    "mwn": mw.number,
                    "type": mw.kind as u32,
                    "state": if bound.is_some() { "bound" } else { "unbound" },
                    "key": bound.map(|bound| bound.key),
                    "mr_key": bound.map(|bound| bound.region),
                    "addr": bound.map(|bound| bound.addr),
                    "length": bound.map(|bound| bound.len),
                    "access": bound.map(|bound| rights(bound.access)),
                    "qpn": bound.and_then(|bound| bound.qpn),
                    "pdn": number(mw.pd),
                })
            }
            What::Ah(ah) => json!({"ahn": ah.number, "dgid": gid_text(ah.av.dgid), "pdn": number(ah.pd)}),
            What::Xrcd(xrcd) => json!({
                "xrcdn": xrcd.number,
                "core": xrcd.core,
                "holders": self.domains.holders(xrcd.number),
                "dev": xrcd.inode.map(|inode| inode.device),
                "ino": xrcd.inode.map(|inode| inode.number),
            }),
            What::Target(_) => return None,
            What::Srq(srq) => json!({
                "srqn": srq.number,
                "state": if srq.failed { "error" } else { "ok" },
                "core": srq.core,
                "max_wr": srq.max_wr(),
                "limit": srq.limit,
                "pdn": number(srq.pd),
                "xrcdn": srq.xrc.and_then(|xrc| number(xrc.xrcd)),
                "cqn": srq.xrc.and_then(|xrc| number(xrc.cq)),
            }),
            What::Qp(qp) => {
                let status = status?;
                json!({
                    "qpn": qp.qpn,
                    "type": qp.qp_type.to_string(),
                    "state": status.attr.state.to_string(),
                    "draining": status.attr.sq_draining,
                    "access": rights(status.attr.access),
                    "core": qp.core,
                    "dest_qpn": status.attr.dest_qpn,
                    "sq_psn": status.attr.sq_psn,
                    "rq_psn": status.attr.rq_psn,
                    "path_mtu": status.attr.path_mtu.bytes(),
                    "pdn": qp.pd.and_then(number),
                    "send_cqn": qp.send_cq.and_then(number),
                    "recv_cqn": qp.recv_cq.and_then(number),
                    "xrcdn": (qp.xrcd != 0).then_some(qp.xrcd),
                    "holders": (qp.xrcd != 0).then(|| self.holders_of(object)),
                    "srqn": qp.srq.and_then(number),
                    "sent_messages": status.sent_messages,
                    "received_packets": status.received_packets,
                    "dropped_packets": status.dropped_packets,
                    "retries": status.retries,
                    "congestion": congestion::name(&status.congestion),
                    "rate_bps": status.rate.map(|bytes| bytes * 8),
                })
            }
        };
        if let (Value::Object(shown), Value::Object(own)) = (&mut shown, own) {
            shown.extend(own);
        }
        Some(shown)
    }

    /// The clients; of these there are few.
    fn clients(&self, query: &ResQuery) -> ResPage {
        let shown = self.connections.values().filter_map(|connection| {
            let client = connection.client.as_deref()?;
            let peer = &connection.session.peer;
            query.pid.is_none_or(|pid| pid == peer.pid).then(|| {
                let mut shown = Map::new();
                shown.insert("session".into(), connection.session.number().into());
                shown.insert("pid".into(), peer.pid.into());
                shown.insert("uid".into(), peer.uid.into());
                shown.insert("comm".into(), peer.comm.clone().into());
                shown.insert("objects".into(), client.objects.len().into());
                let state = if connection.leaving {
                    "leaving"
                } else {
                    "connected"
                };
                shown.insert("state".into(), state.into());
                Value::Object(shown)
            })
        });
        ResPage {
            objects: shown.collect(),
            next: None,
        }
    }
}

/// Rights by their names in verbs.
fn rights(access: Access) -> String {
    let named = [
        (Access::LOCAL_WRITE, "LOCAL_WRITE"),
        (Access::REMOTE_WRITE, "REMOTE_WRITE"),
        (Access::REMOTE_READ, "REMOTE_READ"),
        (Access::REMOTE_ATOMIC, "REMOTE_ATOMIC"),
        (Access::MW_BIND, "MW_BIND"),
        (Access::ZERO_BASED, "ZERO_BASED"),
        (Access::FLUSH_GLOBAL, "FLUSH_GLOBAL"),
    ];
    let held = named.iter().filter(|(right, _)| access.contains(*right));
    let names: Vec<_> = held.map(|(_, name)| *name).collect();
    match names.is_empty() {
        true => "NONE".into(),
        false => names.join("|"),
    }
}

/// Why an object failed: what it reported, or else what its core knows (an error that only a completion told).
fn last_error(reported: Option<&LastError>, status: Option<&QpStatus>) -> Value {
    let known = status
        .map(|status| status.cause)
        .filter(|cause| cause.check != Check::None);
    let Some(cause) = reported.map(|error| error.cause).or(known) else {
        return Value::Null;
    };
    let state = CauseState {
        check: format!("{:?}", cause.check),
        psn: cause.psn,
        opcode: cause.opcode,
        syndrome: cause.syndrome,
    };
    let mut shown = json!(state);
    shown["ago_ms"] = json!(reported.map(|error| error.at.elapsed().as_millis() as u64));
    shown
}
