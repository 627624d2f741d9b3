//! From requests to verbs.

use rnic_abi::{
    DeviceArg, DeviceReply, Empty, GidArg, GidReply, HandleArg, MAX_INLINE, MAX_SGE, Op, PAGE, PkeyArg,
    PkeyReply, PortReply, RtValuesReply,
};
use rnic_engine::{
    PORT_SLOTS,
    command::Command,
    mem::{MAX_MCAST_QP_ATTACH, MAX_TOTAL_MCAST_QP_ATTACH},
};
use rnic_transport::{MAX_MESSAGE, MAX_RD_ATOMIC};
use rnic_wire::Mtu;
use rustix::io::Errno;

use crate::{
    control::Control,
    device::Device,
    objects::{Kind, What},
    ops::Work,
    poller::{Interest, Source},
    refusal::{Refusal, Verb},
    request::{self, Request},
    session::{Admitted, Reply},
    socket::{Packet, Received, receive},
};

/// What became of a request.
pub enum Outcome {
    /// It is done.
    Done(Reply),
    /// It waits; whatever it waits for answers it.
    Pending,
}

/// Memory regions are mapped whole, and no larger ones fit an address space.
const MAX_MR_SIZE: u64 = 1 << 47;

/// Full member of the default partition, the only one there is.
const DEFAULT_PKEY: u32 = 0xFFFF;
/// `IBV_ATOMIC_GLOB`: atomics are processor instructions on the client's memory.
const ATOMIC_GLOB: u32 = 2;
/// Timestamps are nanoseconds.
const CLOCK_KHZ: u64 = 1_000_000;
/// 4.096 µs × 2^11 = 8.4 ms: a poll core that sleeps, or serves others, answers later than hardware.
const ACK_DELAY: u32 = 11;
/// `IBV_DEVICE_CURR_QP_STATE_MOD`, `PORT_ACTIVE_EVENT`, `RC_RNR_NAK_GEN`.
const CAP_FLAGS: u64 = 1 << 7 | 1 << 10 | 1 << 12;

impl Control {
    /// Serves the next request in a connection's socket; others have their turn before the one after it. Whether there was
    /// one.
    pub(crate) fn serve(&mut self, conn: u32) -> bool {
        let Some(connection) = self.connections.get_mut(&conn).filter(|c| !c.leaving) else {
            return false;
        };
        if connection.session.is_busy() {
            // A client that asks for more while it waits for an answer is not listened to until it has it.
            connection.watched = false;
            self.poller
                .change(&connection.session, Source::Client(conn), Interest::Nothing);
            return false;
        }
        let mut packet = self.packet.take().unwrap_or_default();
        let received = receive(&connection.session, &mut packet);
        match received {
            Received::Packet => self.packet_came(conn, &mut packet),
            Received::Nothing => {}
            Received::Closed => self.leave(conn),
        }
        packet.fds.clear();
        self.packet = Some(packet);
        received != Received::Nothing
    }

    fn packet_came(&mut self, conn: u32, packet: &mut Packet) {
        let fds = std::mem::take(&mut packet.fds);
        let fd_count = fds.len();
        let Some(connection) = self.connections.get_mut(&conn) else {
            return;
        };
        let session = &mut connection.session;
        let parsed = request::parse(packet, fd_count);
        let request = match parsed {
            Ok(request) => request,
            Err(malformed) => {
                if session
                    .refuse(malformed.header.as_ref(), &malformed.refusal)
                    .is_err()
                {
                    self.leave(conn);
                }
                return;
            }
        };
        match session.admit(&request.header, request.op) {
            Ok(Admitted::New) => {}
            Ok(Admitted::Replayed) => return,
            Err(refusal) => {
                if session.refuse(Some(&request.header), &refusal).is_err() {
                    self.leave(conn);
                }
                return;
            }
        }
        match self.carry_out(conn, &request, fds) {
            Ok(Outcome::Done(reply)) => self.answer(conn, Ok(reply)),
            Ok(Outcome::Pending) => self.settle(conn),
            Err(refusal) => self.answer(conn, Err(refusal)),
        }
    }

    fn carry_out(
        &mut self,
        conn: u32,
        request: &Request<'_>,
        fds: Vec<std::os::fd::OwnedFd>,
    ) -> Verb<Outcome> {
        match request.op {
            Op::Hello => self.hello(conn, &request.body()?),
            Op::QueryDevice => self.query_device(conn, &request.body()?).map(Outcome::Done),
            Op::QueryPort => self.query_port(conn, &request.body()?).map(Outcome::Done),
            Op::QueryGid => self.query_gid(conn, &request.body()?).map(Outcome::Done),
            Op::AllocPd => self.alloc_pd(conn, &request.body()?),
            Op::DeallocPd => self.destroy_one(conn, Kind::Pd, request.body()?),
            Op::RegMr => {
                let arg = request.body()?;
                let fd = fds
                    .into_iter()
                    .next()
                    .ok_or_else(|| Refusal::invalid("reg_mr takes a memfd"))?;
                self.reg_mr(conn, &arg, fd)
            }
            Op::DeregMr => self.dereg_mr(conn, &request.body()?),
            Op::CreateCompChannel => {
                request.body::<Empty>()?;
                self.create_comp_channel(conn)
            }
            Op::DestroyCompChannel => self.destroy_one(conn, Kind::Channel, request.body()?),
            Op::CreateCq => self.create_cq(conn, &request.body()?),
            Op::ResizeCq => self.resize_cq(conn, &request.body()?),
            Op::ResizeCqDone => self.resize_cq_done(conn, &request.body()?).map(Outcome::Done),
            Op::ModifyCq => self.modify_cq(conn, &request.body()?),
            Op::QueryCq => self.query_cq(conn, &request.body()?).map(Outcome::Done),
            Op::QueryRtValues => self.query_rt_values(conn, &request.body()?).map(Outcome::Done),
            Op::QueryPkey => self.query_pkey(conn, &request.body()?).map(Outcome::Done),
            Op::DestroyCq => self.destroy_one(conn, Kind::Cq, request.body()?),
            Op::CreateQp => self.create_qp(conn, &request.body()?),
            Op::ModifyQp => self.modify_qp(conn, &request.body()?),
            Op::QueryQp => self.query_qp(conn, &request.body()?),
            Op::DestroyQp => self.destroy_qp(conn, request.body()?),
            Op::AllocMw => self.alloc_mw(conn, &request.body()?),
            Op::DeallocMw => self.destroy_one(conn, Kind::Mw, request.body()?),
            Op::CreateAh => self.create_ah(conn, &request.body()?),
            Op::QueryAh => self.query_ah(conn, &request.body()?).map(Outcome::Done),
            Op::AttachMcast => self.attach_mcast(conn, &request.body()?).map(Outcome::Done),
            Op::DetachMcast => self.detach_mcast(conn, &request.body()?).map(Outcome::Done),
            Op::DestroyAh => self.destroy_one(conn, Kind::Ah, request.body()?),
            Op::CreateSrq => self.create_srq(conn, &request.body()?),
            Op::ModifySrq => self.modify_srq(conn, &request.body()?),
            Op::QuerySrq => self.query_srq(conn, &request.body()?).map(Outcome::Done),
            Op::DestroySrq => self.destroy_one(conn, Kind::Srq, request.body()?),
            Op::OpenXrcd => {
                let arg = request.body()?;
                let fd = fds
                    .into_iter()
                    .next()
                    .ok_or_else(|| Refusal::invalid("open_xrcd takes an open file"))?;
                self.open_xrcd(conn, &arg, fd).map(Outcome::Done)
            }
            Op::AllocXrcd => self.alloc_xrcd(conn, &request.body()?).map(Outcome::Done),
            Op::CloseXrcd => self.destroy_one(conn, Kind::Xrcd, request.body()?),
            Op::CreateXrcSrq => self.create_xrc_srq(conn, &request.body()?),
            Op::CreateXrcTgt => self.create_xrc_tgt(conn, &request.body()?).map(Outcome::Done),
            Op::OpenQp => self.open_qp(conn, &request.body()?).map(Outcome::Done),
        }
    }

    /// After anything that may have changed whether a connection can be served: asks to be told of its next
    /// request unless that was asked before, or goes on with its leaving.
    pub(crate) fn settle(&mut self, conn: u32) {
        let Some(connection) = self.connections.get_mut(&conn) else {
            return;
        };
        if connection.leaving {
            self.go_on_leaving(conn);
            return;
        }
        if !connection.watched && !connection.session.is_busy() {
            connection.watched = true;
            self.poller
                .change(&connection.session, Source::Client(conn), Interest::Read);
        }
    }

    /// A device that a client named in a request: one that it knows, and that may be used.
    pub(crate) fn device(&self, conn: u32, index: u32) -> Verb<&Device> {
        if index as usize >= PORT_SLOTS {
            return Err(Refusal::invalid(format!(
                "device is {index}; devices are numbered 0 to {}",
                PORT_SLOTS - 1
            )));
        }
        let client = self.connections.get(&conn).and_then(|c| c.client.as_deref());
        let known = client.and_then(|client| client.device_at(index));
        let there = self.devices.get(index as usize).map(|device| &device.entry);
        match (known, there) {
            (Some(id), Some(entry)) if entry.id == id && entry.is_present() => {
                Ok(&self.devices[index as usize])
            }
            (Some(_), _) => Err(Refusal::new(
                Errno::NODEV,
                format!(
                    "device {index} was removed; destroy what is left on it, and open another one in a new context"
                ),
            )),
            (None, _) => Err(Refusal::new(Errno::NODEV, format!("there is no device {index}"))),
        }
    }

    fn query_device(&self, conn: u32, arg: &DeviceArg) -> Verb<Reply> {
        let device = self.device(conn, arg.device)?;
        let quota = &self.quota;
        Ok(Reply::new(&DeviceReply {
            name: padded(&device.name),
            fw_ver: padded(env!("CARGO_PKG_VERSION")),
            node_guid: device.node_guid(),
            max_mr_size: quota.limits.registered_memory.bytes().min(MAX_MR_SIZE),
            max_qp: quota.of(Kind::Qp),
            max_qp_wr: quota.wr_depth(),
            max_sge: MAX_SGE as u32,
            max_inline: MAX_INLINE as u32,
            max_cq: quota.of(Kind::Cq),
            max_cqe: quota.cq_depth(),
            max_mr: quota.of(Kind::Mr),
            max_pd: quota.of(Kind::Pd),
            max_qp_rd_atom: MAX_RD_ATOMIC.into(),
            max_qp_init_rd_atom: MAX_RD_ATOMIC.into(),
            gids: device.gids.len() as u32,
            ports: 1,
            cap_flags: CAP_FLAGS,
            // Any multiple of the smallest page.
            page_size_cap: !(PAGE as u64 - 1),
            timestamp_mask: u64::MAX,
            core_clock_khz: CLOCK_KHZ,
            atomic_cap: ATOMIC_GLOB,
            max_res_rd_atom: quota.of(Kind::Qp).saturating_mul(MAX_RD_ATOMIC.into()),
            max_srq: quota.of(Kind::Srq),
            max_srq_wr: quota.wr_depth(),
            max_srq_sge: MAX_SGE as u32,
            max_ah: quota.of(Kind::Ah),
            max_mcast_grp: MAX_TOTAL_MCAST_QP_ATTACH as u32,
            max_mcast_qp_attach: MAX_MCAST_QP_ATTACH as u32,
            max_pkeys: 1,
            local_ca_ack_delay: ACK_DELAY,
            max_cq_count: u16::MAX.into(),
            max_cq_period: u16::MAX.into(),
        }))
    }

    fn query_port(&self, conn: u32, arg: &DeviceArg) -> Verb<Reply> {
        let device = self.device(conn, arg.device)?;
        Ok(Reply::new(&PortReply {
            state: if device.up { 4 } else { 1 },
            max_mtu: Mtu::M4096.to_verbs().into(),
            active_mtu: device.path_mtu.to_verbs().into(),
            link_mtu: device.mtu.into(),
            gids: device.gids.len() as u32,
            speed_mbps: device.speed_mbps.unwrap_or(0),
            mac: device.mac,
            pkeys: 1,
            max_msg_sz: MAX_MESSAGE,
            phys_state: if device.up { 5 } else { 3 },
        }))
    }

    /// Completions have timestamps of the cores' clock, which is the daemon's: a client may see another one, in a time
    /// namespace of its own.
    fn query_rt_values(&self, conn: u32, arg: &DeviceArg) -> Verb<Reply> {
        self.device(conn, arg.device)?;
        let raw_clock = rnic_engine::core::clock().0;
        Ok(Reply::new(&RtValuesReply { raw_clock }))
    }

    fn query_pkey(&self, conn: u32, arg: &PkeyArg) -> Verb<Reply> {
        let device = self.device(conn, arg.device)?;
        if arg.index != 0 {
            return Err(Refusal::invalid(format!(
                "index is {}; {} has 1 P_Key, at 0",
                arg.index, device.name
            )));
        }
        Ok(Reply::new(&PkeyReply {
            pkey: DEFAULT_PKEY,
            reserved: 0,
        }))
    }

    /// An index without an address has a GID of zeros, as kernel drivers have it: programs walk the whole table.
    fn query_gid(&self, conn: u32, arg: &GidArg) -> Verb<Reply> {
        let device = self.device(conn, arg.device)?;
        let (index, count) = (arg.index as usize, device.gids.len());
        if index >= count {
            return Err(Refusal::invalid(format!(
                "index is {index}; {} has {count} GIDs, from 0",
                device.name
            )));
        }
        let entry = device.gids.get(index);
        Ok(Reply::new(&GidReply {
            gid: entry.map_or([0; 16], |entry| entry.gid().0),
            kind: 2,
            vlan: entry.and_then(|entry| entry.vlan).map_or(0xFFFF, u32::from),
        }))
    }

    fn query_qp(&mut self, conn: u32, arg: &HandleArg) -> Verb<Outcome> {
        let key = self.find_qp(conn, arg.handle)?;
        let Some(What::Qp(qp)) = self.objects.peek(key).map(|object| &object.what) else {
            return Err(Refusal::invalid("handle is of no QP"));
        };
        if let Some(here) = &qp.here {
            let status = here.status();
            return self.queried(key, Some(status)).map(Outcome::Done);
        }
        let (core, slot) = (qp.core, qp.slot());
        self.answers(core)?;
        let op = self.begin(conn, Work::Query(key));
        self.command(op, core, |token| Command::query_qp(slot, token));
        Ok(Outcome::Pending)
    }
}

fn padded(text: &str) -> [u8; 32] {
    let mut bytes = [0; 32];
    let len = text.len().min(31);
    bytes[..len].copy_from_slice(&text.as_bytes()[..len]);
    bytes
}
