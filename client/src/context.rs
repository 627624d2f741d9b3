//! Contexts: a device opened by a process.
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rnic_abi::{
    DeviceArg, DeviceReply, Empty, GidArg, GidReply, HandleReply, Op, PkeyArg, PkeyReply, PortReply,
    RtValuesReply,
};

use crate::session::Session;
use crate::{
    AsyncEvent, AsyncEvents, CompChannel, Cq, Error, Gid, GidEntry, Mtu, Pd, PortState, Result, Xrcd,
    XrcdOpen,
};

/// Where the daemon listens: `$RNIC_SOCKET`, or `/run/rnic/rnicd.sock`.
pub fn default_socket() -> PathBuf {
    std::env::var_os("RNIC_SOCKET").map_or_else(|| "/run/rnic/rnicd.sock".into(), PathBuf::from)
}

/// The devices of the daemon at `socket`.
pub fn devices(socket: impl AsRef<Path>) -> Result<Vec<DeviceAttr>> {
    let session = Session::open(socket.as_ref())?;
    Ok(list(&session)?.into_iter().map(|(_, attr)| attr).collect())
}

/// The devices there are, with their numbers. There are gaps where devices were removed, or may still come.
fn list(session: &Session) -> Result<Vec<(u32, DeviceAttr)>> {
    let no_device = rustix::io::Errno::NODEV.raw_os_error();
    let attr = |device| match query_device(session, device) {
        Ok(attr) => Some(Ok((device, attr))),
        Err(error) if error.errno() == Some(no_device) => None,
        Err(error) => Some(Err(error)),
    };
    (0..session.devices).filter_map(attr).collect()
}

/// A device opened by this process: the start of everything. Cheap to clone; any thread.
#[derive(Clone, Debug)]
pub struct Context {
    pub(crate) session: Arc<Session>,
    pub(crate) device: u32,
    attr: Arc<DeviceAttr>,
}

impl Context {
    /// Connects to the daemon listening at `socket` ([`default_socket`]) and opens the device of this name.
    pub fn open(socket: impl AsRef<Path>, device: &str) -> Result<Context> {
        let session = Session::open(socket.as_ref())?;
        let mut devices = list(&session)?;
        let Some(at) = devices.iter().position(|(_, attr)| attr.name == device) else {
            return Err(Error::NoDevice {
                name: device.into(),
                available: devices.into_iter().map(|(_, attr)| attr.name).collect(),
            });
        };
        let (number, attr) = devices.swap_remove(at);
        session.events.follow(number, session.devices);
        Ok(Context {
            session,
            device: number,
            attr: Arc::new(attr),
        })
    }

    /// What the device can do, and this client's quotas.
    pub fn attr(&self) -> &DeviceAttr {
        &self.attr
    }

    /// State of the device's port, now.
    pub fn query_port(&self) -> Result<PortAttr> {
        let reply: PortReply = self.session.control.request(Op::QueryPort, &self.arg())?;
        let mtu =
            |code| Mtu::from_code(code).ok_or_else(|| Error::Protocol(format!("an MTU code of {code}")));
        Ok(PortAttr {
            state: reply.state.into(),
            max_mtu: mtu(reply.max_mtu)?,
            active_mtu: mtu(reply.active_mtu)?,
            link_mtu: reply.link_mtu,
            speed_mbps: (reply.speed_mbps != 0).then_some(reply.speed_mbps),
            mac: reply.mac,
            gids: reply.gids,
            pkeys: reply.pkeys,
            max_msg_sz: reply.max_msg_sz,
            phys_state: reply.phys_state,
        })
    }

    /// The GID table, without its empty entries.
    pub fn gids(&self) -> Result<Vec<GidEntry>> {
        let count = self.query_port()?.gids.min(256);
        let mut entries = Vec::new();
        for index in 0..count {
            let entry = self.gid(index as u8)?;
            if entry.gid != Gid([0; 16]) {
                entries.push(entry);
            }
        }
        Ok(entries)
    }

    /// An entry of the GID table.
    pub fn gid(&self, index: u8) -> Result<GidEntry> {
        let arg = GidArg {
            device: self.device,
            index: index.into(),
        };
        let reply: GidReply = self.session.control.request(Op::QueryGid, &arg)?;
        Ok(GidEntry {
            index,
            gid: Gid(reply.gid),
            vlan: u16::try_from(reply.vlan).ok().filter(|vlan| *vlan != 0xFFFF),
        })
    }

    /// An entry of the P_Key table, of which there is one: 0xFFFF at index 0, full member of the default partition.
    pub fn pkey(&self, index: u32) -> Result<u16> {
        let device = self.device;
        let reply: PkeyReply = self
            .session
            .control
            .request(Op::QueryPkey, &PkeyArg { device, index })?;
        Ok(reply.pkey as u16)
    }

    /// The clock of completions' timestamps, now, in nanoseconds: `CLOCK_MONOTONIC` as the daemon sees it. Between two
    /// readings of it an application's own clock can be fitted.
    pub fn raw_clock(&self) -> Result<u64> {
        let reply: RtValuesReply = self.session.control.request(Op::QueryRtValues, &self.arg())?;
        Ok(reply.raw_clock)
    }

    /// Makes a protection domain.
    pub fn alloc_pd(&self) -> Result<Pd> {
        let reply: HandleReply = self.session.control.request(Op::AllocPd, &self.arg())?;
        Ok(Pd::new(self.clone(), reply.handle))
    }

    /// Opens the XRC domain that an open file stands for: the same for every client that opens the same file, whatever it
    /// calls it. Anyone who can open the file, if only for reading, can take part.
    pub fn open_xrcd(&self, file: impl AsFd, how: XrcdOpen) -> Result<Xrcd> {
        Xrcd::open(self, file.as_fd(), how)
    }

    /// Makes an XRC domain of this client alone.
    pub fn alloc_xrcd(&self) -> Result<Xrcd> {
        Xrcd::alloc(self)
    }

    /// Makes a completion channel, for several CQs to wake one waiter.
    pub fn create_comp_channel(&self) -> Result<CompChannel> {
        let (reply, mut fds): (HandleReply, _) =
            self.session
                .control
                .request_with(Op::CreateCompChannel, &Empty::default(), None)?;
        let socket = fds
            .pop_front()
            .ok_or_else(|| Error::Protocol("create_comp_channel came without its descriptor".into()))?;
        Ok(CompChannel::new(self.session.clone(), reply.handle, socket))
    }

    /// Makes a CQ with room for at least `depth` completions and a completion channel of its own.
    pub fn create_cq(&self, depth: u32) -> Result<Cq> {
        self.create_cq_on(&self.create_comp_channel()?, depth)
    }

    /// Makes a CQ that wakes the waiters of `channel`.
    pub fn create_cq_on(&self, channel: &CompChannel, depth: u32) -> Result<Cq> {
        Cq::create(self, channel, depth)
    }

    /// The next asynchronous event; `None` when the time is over, no timeout is for ever.
    pub fn next_event(&self, timeout: Option<Duration>) -> Result<Option<AsyncEvent>> {
        self.async_events().next(timeout)
    }

    /// The asynchronous events as a source for an event loop.
    pub fn async_events(&self) -> AsyncEvents {
        AsyncEvents(self.session.clone())
    }

    fn arg(&self) -> DeviceArg {
        DeviceArg {
            device: self.device,
            reserved: 0,
        }
    }
}

/// What a device can do, and the quotas of this client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceAttr {
    /// Name: `rnic0`.
    pub name: String,
    /// Version of the daemon.
    pub fw_ver: String,
    /// GUID.
    pub node_guid: u64,
    /// Bytes of the largest region.
    pub max_mr_size: u64,
    /// QPs.
    pub max_qp: u32,
    /// Units of 64 bytes of a work queue.
    pub max_qp_wr: u32,
    /// Entries of a work request.
    pub max_sge: u32,
    /// Inline bytes of a work request.
    pub max_inline: u32,
    /// CQs.
    pub max_cq: u32,
    /// Entries of a CQ.
    pub max_cqe: u32,
    /// Memory regions.
    pub max_mr: u32,
    /// Protection domains.
    pub max_pd: u32,
    /// READs and atomics a QP may have outstanding as responder.
    pub max_qp_rd_atom: u32,
    /// READs and atomics a QP may have outstanding as requester.
    pub max_qp_init_rd_atom: u32,
    /// Entries of the GID table.
    pub gids: u32,
    /// Bits of `enum ibv_device_cap_flags`.
    pub cap_flags: u64,
    /// Page sizes that memory may be registered by, as bits.
    pub page_size_cap: u64,
    /// Which bits of a completion's timestamp count.
    pub timestamp_mask: u64,
    /// Ticks of that clock in a millisecond (kHz): `hca_core_clock`.
    pub core_clock_khz: u64,
    /// `enum ibv_atomic_cap`: 2, atomic for processors too.
    pub atomic_cap: u32,
    /// READs and atomics outstanding as responder, of all QPs.
    pub max_res_rd_atom: u32,
    /// SRQs.
    pub max_srq: u32,
    /// Units of 64 bytes of an SRQ.
    pub max_srq_wr: u32,
    /// Entries of a receive of an SRQ.
    pub max_srq_sge: u32,
    /// Address handles.
    pub max_ah: u32,
    /// Multicast groups with members, of all clients.
    pub max_mcast_grp: u32,
    /// QPs attached to one group.
    pub max_mcast_qp_attach: u32,
    /// Entries of the P_Key table.
    pub max_pkeys: u32,
    /// Exponent of the time an ACK may take here: 4.096 µs × 2^delay.
    pub local_ca_ack_delay: u32,
    /// Largest count of [`Cq::moderate`].
    pub max_cq_count: u32,
    /// Largest period of it, in microseconds.
    pub max_cq_period: u32,
}

/// State of a device's port.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct PortAttr {
    /// Up or down.
    pub state: PortState,
    /// Largest path MTU.
    pub max_mtu: Mtu,
    /// Path MTU in force.
    pub active_mtu: Mtu,
    /// MTU of the link in bytes.
    pub link_mtu: u32,
    /// Megabits a second, when known.
    pub speed_mbps: Option<u32>,
    /// MAC address.
    pub mac: [u8; 6],
    /// Entries of the GID table.
    pub gids: u32,
    /// Entries of the P_Key table.
    pub pkeys: u16,
    /// Bytes of the longest message.
    pub max_msg_sz: u32,
    /// `enum ibv_port_phys_state`: 3 disabled, 5 link up.
    pub phys_state: u32,
}

fn query_device(session: &Session, device: u32) -> Result<DeviceAttr> {
    let arg = DeviceArg { device, reserved: 0 };
    let reply: DeviceReply = session.control.request(Op::QueryDevice, &arg)?;
    let text = |bytes: &[u8]| {
        let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
        String::from_utf8_lossy(&bytes[..end]).into_owned()
    };
    Ok(DeviceAttr {
        name: text(&reply.name),
        fw_ver: text(&reply.fw_ver),
        node_guid: reply.node_guid,
        max_mr_size: reply.max_mr_size,
        max_qp: reply.max_qp,
        max_qp_wr: reply.max_qp_wr,
        max_sge: reply.max_sge,
        max_inline: reply.max_inline,
        max_cq: reply.max_cq,
        max_cqe: reply.max_cqe,
        max_mr: reply.max_mr,
        max_pd: reply.max_pd,
        max_qp_rd_atom: reply.max_qp_rd_atom,
        max_qp_init_rd_atom: reply.max_qp_init_rd_atom,
        gids: reply.gids,
        cap_flags: reply.cap_flags,
        page_size_cap: reply.page_size_cap,
        timestamp_mask: reply.timestamp_mask,
        core_clock_khz: reply.core_clock_khz,
        atomic_cap: reply.atomic_cap,
        max_res_rd_atom: reply.max_res_rd_atom,
        max_srq: reply.max_srq,
        max_srq_wr: reply.max_srq_wr,
        max_srq_sge: reply.max_srq_sge,
        max_ah: reply.max_ah,
        max_mcast_grp: reply.max_mcast_grp,
        max_mcast_qp_attach: reply.max_mcast_qp_attach,
        max_pkeys: reply.max_pkeys,
        local_ca_ack_delay: reply.local_ca_ack_delay,
        max_cq_count: reply.max_cq_count,
        max_cq_period: reply.max_cq_period,
    })
}
