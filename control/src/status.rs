//! What `rnicctl` is told. The field names are part of the interface: scripts read them.

use std::{collections::BTreeMap, net::IpAddr, time::Instant};

use rnic_engine::{command::QpStatus, port::PortStats};
use rnic_transport::Check;
use serde::{Deserialize, Serialize};

use crate::{
    congestion,
    control::Control,
    device::Device,
    gid::GidTable,
    objects::{Kind, Object, What},
    registry,
    stall::HeldUp,
};

/// `rnicctl status`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Clients that have said hello.
    pub clients: usize,
    /// Protection domains.
    pub pds: usize,
    /// Memory regions.
    pub mrs: usize,
    /// Completion queues.
    pub cqs: usize,
    /// Queue pairs.
    pub qps: usize,
    /// Address handles.
    pub ahs: usize,
    /// Shared receive queues.
    pub srqs: usize,
    /// XRC domains, each counted once for every client that holds it.
    pub xrcds: usize,
    /// Memory windows.
    pub mws: usize,
    /// Bytes of destroyed objects, departed clients and replaced views that poll cores may still look at.
    pub bytes_awaiting_grace: usize,
    /// What that never exceeds: `limits.bytes_awaiting_grace`, unless one object that may be made is larger.
    pub bytes_awaiting_grace_bound: usize,
    /// Bytes of memory regions whose deregistration waits for poll cores, or for being unmapped.
    pub mapped_bytes_awaiting_grace: u64,
    /// What that never exceeds: what all clients together may register.
    pub mapped_bytes_awaiting_grace_bound: u64,
    /// Destructions that wait for room below the bounds, their objects still whole.
    pub destructions_in_line: usize,
    /// How long the oldest of what awaits grace has waited, in microseconds.
    pub oldest_grace_us: u64,
    /// The poll cores.
    pub cores: Vec<CoreState>,
    /// The ports.
    pub ports: Vec<PortState>,
}

/// A poll core.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CoreState {
    /// Its number.
    pub id: usize,
    /// `running`, `sleeping` or `stopped`.
    pub state: String,
    /// For how long it has not gone on, in milliseconds, when that is too long; else 0.
    pub stalled_ms: u64,
    /// Stalls so far, a present one included.
    pub stalls: u64,
    /// What it holds up, while it is stalled.
    pub held_up: Option<HeldUp>,
    /// The epoch it last reported.
    pub epoch: u64,
    /// TSC cycles of passes that found work.
    pub busy_cycles: u64,
    /// TSC cycles of the others.
    pub idle_cycles: u64,
    /// Counters that are not zero.
    pub counters: BTreeMap<String, u64>,
}

/// A port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortState {
    /// Device name.
    pub name: String,
    /// `active`, `down`, or `removing`.
    pub state: String,
    /// Link MTU in bytes.
    pub mtu: u16,
    /// GIDs, in the order of their indices; zeros where there is none.
    pub gids: Vec<String>,
    /// How QPs made now deal with congestion: `off`, `fixed` or `dcqcn`.
    pub congestion: String,
    /// What was counted about congestion, by the names of `rdma statistic`: `np_ecn_marked_roce_packets`, `np_cnp_sent`,
    /// `rp_cnp_handled`, `rp_cnp_ignored`.
    pub counters: BTreeMap<String, u64>,
}

/// One index of `rnicctl gid`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GidState {
    /// Device.
    pub device: String,
    /// Index.
    pub index: usize,
    /// The GID.
    pub gid: String,
    /// Its address.
    pub ip: IpAddr,
    /// Length of its network prefix.
    pub prefix_len: u8,
    /// Its VLAN.
    pub vlan: Option<u16>,
    /// `live`, or `held`: the address is gone, and what uses it keeps its index.
    pub state: String,
    /// QPs and AHs that use it.
    pub holders: usize,
}

/// One device of `rnicctl dev`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceState {
    /// Its port.
    #[serde(flatten)]
    pub port: PortState,
    /// Driver behind it.
    pub driver: String,
    /// MAC address.
    pub mac: String,
    /// Largest path MTU in bytes.
    pub path_mtu: usize,
    /// Queues.
    pub queues: usize,
    /// Megabits a second, when known.
    pub speed_mbps: Option<u32>,
    /// Frames received.
    pub rx_frames: u64,
    /// Bytes received.
    pub rx_bytes: u64,
    /// Frames lost before the daemon saw them.
    pub rx_dropped: u64,
    /// Frames sent.
    pub tx_frames: u64,
    /// Bytes sent.
    pub tx_bytes: u64,
    /// Frames the driver did not send.
    pub tx_dropped: u64,
}

/// One QP of `rnicctl qp`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct QpState {
    /// Number.
    pub qpn: u32,
    /// Device.
    pub device: String,
    /// Process of its owner.
    pub pid: i32,
    /// Program of its owner.
    pub comm: String,
    /// Poll core that owns it.
    pub core: usize,
    /// State, as verbs call it.
    pub state: String,
    /// Address of the peer.
    pub peer: Option<IpAddr>,
    /// QPN of the peer.
    pub dest_qpn: u32,
    /// Path MTU in bytes.
    pub path_mtu: usize,
    /// Next PSN sent, or the first one.
    pub sq_psn: u32,
    /// Next PSN expected, or the first one.
    pub rq_psn: u32,
    /// Messages completed as requester.
    pub sent_messages: u64,
    /// Packets received and accepted.
    pub received_packets: u64,
    /// Packets dropped.
    pub dropped_packets: u64,
    /// Retransmissions begun.
    pub retries: u64,
    /// How it deals with congestion: `off`, `fixed` or `dcqcn`.
    pub congestion: String,
    /// Bits a second that it sends at most now; none when it is not limited.
    pub rate_bps: Option<u64>,
    /// Why it is in the error state.
    pub last_cause: Option<CauseState>,
}

/// Why a QP failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CauseState {
    /// The check that failed.
    pub check: String,
    /// PSN of the packet.
    pub psn: u32,
    /// BTH opcode of the packet.
    pub opcode: u8,
    /// AETH syndrome.
    pub syndrome: u8,
}

/// One neighbour of `rnicctl neigh`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NeighbourState {
    /// Device it is behind.
    pub device: String,
    /// VLAN; none without a tag, and for a configured one, which is on all of them.
    pub vlan: Option<u16>,
    /// Address.
    pub ip: IpAddr,
    /// The last MAC address known.
    pub mac: Option<String>,
    /// `static`, `incomplete`, `reachable`, `stale`, `probe` or `failed`.
    pub state: String,
    /// Milliseconds since it was last heard of.
    pub age_ms: Option<u64>,
    /// QPs and address handles with a path over it.
    pub users: u32,
}

impl Control {
    pub(crate) fn neighbour_states(&self) -> Vec<NeighbourState> {
        let mut states: Vec<_> = self
            .neighbours
            .iter()
            .map(|shown| NeighbourState {
                device: self
                    .devices
                    .get(usize::from(shown.port))
                    .map_or_else(String::new, |device| device.name.clone()),
                vlan: shown.vlan,
                ip: shown.ip,
                mac: shown.mac.map(mac_text),
                state: shown.state.into(),
                age_ms: shown.heard.map(|at| at.elapsed().as_millis() as u64),
                users: shown.users,
            })
            .collect();
        states.sort_by(|a, b| (&a.device, a.ip, a.vlan).cmp(&(&b.device, b.ip, b.vlan)));
        states
    }

    pub(crate) fn status(&self) -> Status {
        let mut counts = [0; Kind::COUNT];
        for (_, object) in self.objects.iter() {
            counts[object.kind() as usize] += 1;
        }
        let oldest = [
            self.engine.oldest_grace(),
            self.ops.oldest_in_grace().map(|since| since.elapsed()),
        ];
        Status {
            clients: self.by_index.len(),
            pds: counts[Kind::Pd as usize],
            mrs: counts[Kind::Mr as usize],
            cqs: counts[Kind::Cq as usize],
            qps: counts[Kind::Qp as usize],
            ahs: counts[Kind::Ah as usize],
            srqs: counts[Kind::Srq as usize],
            xrcds: counts[Kind::Xrcd as usize],
            mws: counts[Kind::Mw as usize],
            bytes_awaiting_grace: self.bytes_awaiting_grace(),
            bytes_awaiting_grace_bound: self.grace_bound(),
            mapped_bytes_awaiting_grace: self.mapped_awaiting_grace(),
            mapped_bytes_awaiting_grace_bound: self.mapped_bound(),
            destructions_in_line: self.grace.in_line(),
            oldest_grace_us: oldest.into_iter().flatten().max().unwrap_or_default().as_micros() as u64,
            cores: (0..self.engine.core_count())
                .map(|id| self.core_state(id))
                .collect(),
            ports: self
                .devices_there()
                .map(|(slot, device)| self.port_state(slot, device))
                .collect(),
        }
    }

    fn core_state(&self, id: usize) -> CoreState {
        let now = Instant::now();
        let stalled = self.engine.stalled(id, now);
        let status = self.engine.core_status(id);
        let counters = status.counters.named().filter(|(_, value)| *value != 0);
        CoreState {
            id,
            state: status.state.into(),
            stalled_ms: stalled.map_or(0, |quiet| quiet.as_millis() as u64),
            stalls: self.stalls[id].count(),
            held_up: stalled.map(|_| self.held_up_by(id, now)),
            epoch: status.epoch,
            busy_cycles: status.busy_cycles,
            idle_cycles: status.idle_cycles,
            counters: counters.map(|(name, value)| (name.to_owned(), value)).collect(),
        }
    }

    pub(crate) fn gid_states(&self) -> Vec<GidState> {
        let of = |device: &Device| -> Vec<GidState> {
            let state = |index: usize| {
                let slot = device.gids.slot(index)?;
                let entry = slot.entry();
                Some(GidState {
                    device: device.name.clone(),
                    index,
                    gid: gid_text(entry.gid().0),
                    ip: entry.ip,
                    prefix_len: entry.prefix_len,
                    vlan: entry.vlan,
                    state: if slot.is_live() { "live" } else { "held" }.into(),
                    holders: slot.holders(),
                })
            };
            (0..device.gids.len()).filter_map(state).collect()
        };
        self.devices.iter().flat_map(of).collect()
    }

    pub(crate) fn device_states(&self) -> Vec<DeviceState> {
        let state = |(index, info): (u16, &rnic_engine::PortInfo)| {
            let index = usize::from(index);
            let device = self.devices.get(index)?;
            let PortStats {
                rx_frames,
                rx_bytes,
                rx_dropped,
                tx_frames,
                tx_bytes,
                tx_dropped,
            } = self.engine.port_stats(index);
            Some(DeviceState {
                port: self.port_state(index, device),
                driver: info.driver.clone(),
                mac: mac_text(info.mac),
                path_mtu: device.path_mtu.bytes(),
                queues: info.queues,
                speed_mbps: device.speed_mbps,
                rx_frames,
                rx_bytes,
                rx_dropped,
                tx_frames,
                tx_bytes,
                tx_dropped,
            })
        };
        self.engine.ports().filter_map(state).collect()
    }

    /// What is known of a QP, with what its core has told.
    pub(crate) fn qp_state(&self, object: &Object, status: &QpStatus) -> Option<QpState> {
        let What::Qp(qp) = &object.what else { return None };
        let peer = self.connections.get(&object.owner).map(|c| &c.session.peer);
        let attr = &status.attr;
        Some(QpState {
            qpn: qp.qpn,
            device: self
                .devices
                .get(object.device as usize)
                .map(|d| d.name.clone())
                .unwrap_or_default(),
            pid: peer.map_or(0, |p| p.pid),
            comm: peer.map(|p| p.comm.clone()).unwrap_or_default(),
            core: qp.core,
            state: attr.state.to_string(),
            peer: qp.av.map(|av| crate::device::Gid(av.dgid).ip()),
            dest_qpn: qp.dest_qpn,
            path_mtu: attr.path_mtu.bytes(),
            sq_psn: attr.sq_psn,
            rq_psn: attr.rq_psn,
            sent_messages: status.sent_messages,
            received_packets: status.received_packets,
            dropped_packets: status.dropped_packets,
            retries: status.retries,
            congestion: congestion::name(&status.congestion).into(),
            rate_bps: status.rate.map(|bytes| bytes * 8),
            last_cause: (status.cause.check != Check::None).then(|| CauseState {
                check: format!("{:?}", status.cause.check),
                psn: status.cause.psn,
                opcode: status.cause.opcode,
                syndrome: status.cause.syndrome,
            }),
        })
    }
}

impl Control {
    fn port_state(&self, slot: usize, device: &Device) -> PortState {
        let state = match device.entry.state() {
            registry::DeviceState::Present if device.up => "active",
            registry::DeviceState::Present => "down",
            registry::DeviceState::Removing | registry::DeviceState::Gone => "removing",
        };
        let counters = self.engine.port_congestion(slot).named();
        let counters = counters.into_iter().map(|(name, value)| (name.to_owned(), value));
        PortState {
            name: device.name.clone(),
            state: state.into(),
            mtu: device.mtu,
            gids: gid_texts(&device.gids),
            congestion: congestion::name(&congestion::control(&device.congestion, device.speed_mbps)).into(),
            counters: counters.collect(),
        }
    }
}

/// A table up to its last GID.
fn gid_texts(table: &GidTable) -> Vec<String> {
    let used = (0..table.len()).rev().find(|index| table.get(*index).is_some());
    let gid = |index| table.get(index).map_or([0; 16], |entry| entry.gid().0);
    (0..used.map_or(0, |last| last + 1))
        .map(|index| gid_text(gid(index)))
        .collect()
}

/// A GID in the form of `ibv_devinfo`: eight groups of four digits.
pub(crate) fn gid_text(gid: [u8; 16]) -> String {
    let groups = gid
        .chunks_exact(2)
        .map(|pair| format!("{:02x}{:02x}", pair[0], pair[1]));
    groups.collect::<Vec<_>>().join(":")
}

fn mac_text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}
