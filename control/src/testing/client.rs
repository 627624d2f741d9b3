//! A client without a library: requests, and what it finds in its region.

use std::{
    os::fd::{AsFd, OwnedFd},
    path::Path,
    sync::atomic::Ordering,
    time::Duration,
};

use rnic_abi::*;
use rnic_engine::mem::ClientMem;
use rustix::{
    io::Errno,
    net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType},
};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::{PATIENCE, wait_for, wait_readable};
use crate::socket::{self, Packet, Received};

/// What a hello brings.
pub struct Context {
    pub layout: RegionLayout,
    pub region: ClientMem,
    /// Its memfd.
    pub memfd: OwnedFd,
    pub events: OwnedFd,
    pub wakes: Vec<OwnedFd>,
}

/// A client without a library.
pub struct Client {
    pub socket: OwnedFd,
    pub session: u64,
    pub sequence: u64,
    pub context: Option<Context>,
}

/// A refusal as the client sees it.
#[derive(Debug, PartialEq, Eq)]
pub struct Refused {
    pub errno: Errno,
    pub text: String,
}

impl Client {
    /// A connection that has not said hello.
    pub fn connect(socket: &Path) -> Self {
        let flags = SocketFlags::CLOEXEC;
        let address = SocketAddrUnix::new(socket).unwrap();
        let socket =
            rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
        rustix::net::connect(&socket, &address).unwrap();
        Client {
            socket,
            session: 0,
            sequence: 0,
            context: None,
        }
    }

    pub fn hello(&mut self) {
        let (hello, fds) = self
            .call_with::<HelloReply>(Op::Hello, &Hello::default(), &[])
            .unwrap();
        let mut fds = fds.into_iter();
        let (memfd, events) = (fds.next().unwrap(), fds.next().unwrap());
        let region = ClientMem::map(memfd.as_fd(), 0, hello.region_size, Default::default()).unwrap();
        let header: RegionHeader = region.read(0).unwrap();
        let layout = RegionLayout::from_header(&header).unwrap();
        assert_eq!(header.boot_epoch, hello.boot_epoch);
        self.session = hello.session;
        self.context = Some(Context {
            layout,
            region,
            memfd,
            events,
            wakes: fds.collect(),
        });
    }

    /// What the daemon's shared headers say.
    pub fn boot_epoch(&self) -> u64 {
        self.context().region.read::<RegionHeader>(0).unwrap().boot_epoch
    }

    pub fn context(&self) -> &Context {
        self.context.as_ref().unwrap()
    }

    /// The header of the next request.
    pub fn header(&mut self, op: Op, body_len: usize) -> RequestHeader {
        self.sequence += 1;
        RequestHeader {
            magic: CONTROL_MAGIC,
            version: ABI_VERSION as u16,
            op: op as u16,
            session: self.session,
            sequence: self.sequence,
            body_len: body_len as u32,
            reserved: 0,
        }
    }

    pub fn send(&mut self, op: Op, body: &(impl IntoBytes + Immutable), fds: &[&OwnedFd]) {
        let header = self.header(op, body.as_bytes().len());
        self.send_raw(&[header.as_bytes(), body.as_bytes()].concat(), fds);
    }

    pub fn send_raw(&self, bytes: &[u8], fds: &[&OwnedFd]) {
        let fds: Vec<_> = fds.iter().map(|fd| fd.as_fd()).collect();
        socket::send(&self.socket, bytes, &fds).unwrap();
    }

    /// The next reply: header, body, descriptors. `None` when the daemon has closed the connection.
    pub fn receive(&self) -> Option<(ReplyHeader, Vec<u8>, Vec<OwnedFd>)> {
        self.wait(PATIENCE).then_some(())?;
        let mut packet = Packet::new();
        match socket::receive(&self.socket, &mut packet) {
            Received::Packet => {
                let (header, body) = ReplyHeader::read_from_prefix(packet.bytes()).unwrap();
                assert_eq!(header.body_len as usize, body.len());
                let body = body.to_vec();
                Some((header, body, std::mem::take(&mut packet.fds)))
            }
            _ => None,
        }
    }

    /// Whether something comes in within `time`.
    pub fn wait(&self, time: Duration) -> bool {
        wait_readable(&self.socket, time)
    }

    pub fn result<R: FromBytes>(&self) -> Result<(R, Vec<OwnedFd>), Refused> {
        let (header, body, fds) = self
            .receive()
            .expect("the daemon closed the connection or said nothing");
        assert_eq!(header.sequence, self.sequence);
        match header.status {
            0 => Ok((R::read_from_bytes(&body).unwrap(), fds)),
            errno => Err(Refused {
                errno: Errno::from_raw_os_error(errno),
                text: String::from_utf8(body).unwrap(),
            }),
        }
    }

    pub fn call_with<R: FromBytes>(
        &mut self,
        op: Op,
        body: &(impl IntoBytes + Immutable),
        fds: &[&OwnedFd],
    ) -> Result<(R, Vec<OwnedFd>), Refused> {
        self.send(op, body, fds);
        self.result()
    }

    pub fn call<R: FromBytes>(&mut self, op: Op, body: &(impl IntoBytes + Immutable)) -> Result<R, Refused> {
        self.call_with(op, body, &[]).map(|(reply, _)| reply)
    }

    pub fn try_pd_on(&mut self, device: u32) -> Result<u32, Refused> {
        let arg = DeviceArg { device, reserved: 0 };
        self.call::<HandleReply>(Op::AllocPd, &arg)
            .map(|reply| reply.handle)
    }

    pub fn pd(&mut self) -> u32 {
        self.try_pd_on(0).unwrap()
    }

    pub fn channel(&mut self) -> (u32, OwnedFd) {
        let (reply, mut fds) = self
            .call_with::<HandleReply>(Op::CreateCompChannel, &Empty {}, &[])
            .unwrap();
        (reply.handle, fds.remove(0))
    }

    pub fn try_cq_on(&mut self, device: u32, depth: u32, channel: u32) -> Result<CreateCqReply, Refused> {
        let arg = CreateCq {
            device,
            depth,
            channel,
            reserved: 0,
        };
        self.call(Op::CreateCq, &arg)
    }

    pub fn try_cq(&mut self, depth: u32, channel: u32) -> Result<CreateCqReply, Refused> {
        self.try_cq_on(0, depth, channel)
    }

    pub fn cq(&mut self) -> u32 {
        self.try_cq(64, 0).unwrap().handle
    }

    pub fn try_qp(&mut self, pd: u32, cq: u32) -> Result<CreateQpReply, Refused> {
        self.send_create(pd, cq);
        self.result().map(|(reply, _)| reply)
    }

    /// A QP in RTR, connected to itself: its core has it.
    pub fn connected_qp(&mut self, pd: u32, cq: u32) -> CreateQpReply {
        let qp = self.qp(pd, cq);
        self.make_init(qp.handle);
        self.make_rtr(qp.handle, "10.0.0.1", qp.qpn).unwrap();
        qp
    }

    /// Asks for a QP, without waiting for it.
    pub fn send_create(&mut self, pd: u32, cq: u32) {
        let arg = CreateQp {
            pd,
            send_cq: cq,
            recv_cq: cq,
            qp_type: 2,
            sq_units: 16,
            rq_units: 16,
            ..CreateQp::default()
        };
        self.send(Op::CreateQp, &arg, &[]);
    }

    pub fn qp(&mut self, pd: u32, cq: u32) -> CreateQpReply {
        self.try_qp(pd, cq).unwrap()
    }

    pub fn try_mr(&mut self, pd: u32, fd: &OwnedFd, length: u64, access: u32) -> Result<RegMrReply, Refused> {
        let arg = RegMr {
            pd,
            access,
            fd_offset: 0,
            length,
            iova: 0x10_0000,
        };
        self.call_with(Op::RegMr, &arg, &[fd]).map(|(reply, _)| reply)
    }

    pub fn try_ah(&mut self, pd: u32, flags: u32, ah_attr: Av) -> Result<CreateAhReply, Refused> {
        self.call(Op::CreateAh, &CreateAh { pd, flags, ah_attr })
    }

    pub fn query_ah(&mut self, handle: u32) -> Result<QueryAhReply, Refused> {
        self.call(Op::QueryAh, &HandleArg { handle, reserved: 0 })
    }

    pub fn destroy(&mut self, op: Op, handle: u32) -> Result<(), Refused> {
        self.call::<Empty>(op, &HandleArg { handle, reserved: 0 })
            .map(drop)
    }

    /// Destroys a QP or CQ and tells how many events it had reported.
    pub fn destroy_counting(&mut self, op: Op, handle: u32) -> u32 {
        self.call::<DestroyReply>(op, &HandleArg { handle, reserved: 0 })
            .unwrap()
            .events_reported
    }

    pub fn modify(&mut self, handle: u32, mask: u32, attrs: QpAttrs) -> Result<(), Refused> {
        self.call::<Empty>(Op::ModifyQp, &ModifyQp { handle, mask, attrs })
            .map(drop)
    }

    /// RESET to INIT.
    pub fn make_init(&mut self, handle: u32) {
        let attrs = QpAttrs {
            qp_state: 1,
            port_num: 1,
            qp_access_flags: 7,
            ..QpAttrs::default()
        };
        let mask = qp_mask::STATE | qp_mask::PORT | qp_mask::PKEY_INDEX | qp_mask::ACCESS_FLAGS;
        self.modify(handle, mask, attrs).unwrap();
    }

    /// Asks for INIT to RTR towards itself, without waiting for it.
    pub fn send_rtr(&mut self, handle: u32, qpn: u32) {
        let (mask, attrs) = (RTR, rtr("10.0.0.1", qpn));
        self.send(Op::ModifyQp, &ModifyQp { handle, mask, attrs }, &[]);
    }

    /// INIT to RTR, towards a peer.
    pub fn make_rtr(&mut self, handle: u32, dgid: &str, dest_qp_num: u32) -> Result<(), Refused> {
        self.modify(handle, RTR, rtr(dgid, dest_qp_num))
    }

    /// RTR to RTS.
    pub fn make_rts(&mut self, handle: u32) {
        self.make_rts_with(handle, 14);
    }

    /// The same with another local ACK timeout.
    pub fn make_rts_with(&mut self, handle: u32, timeout: u8) {
        let attrs = QpAttrs {
            qp_state: 3,
            timeout,
            retry_cnt: 7,
            rnr_retry: 7,
            ..QpAttrs::default()
        };
        let mask = qp_mask::STATE
            | qp_mask::SQ_PSN
            | qp_mask::TIMEOUT
            | qp_mask::RETRY_CNT
            | qp_mask::RNR_RETRY
            | qp_mask::MAX_QP_RD_ATOMIC;
        self.modify(handle, mask, attrs).unwrap();
    }

    /// Waits until the event ring has had this many entries.
    pub fn await_events(&self, count: u32) {
        let Context { layout, region, .. } = self.context();
        let tail = region.u32(layout.events + RingIndices::TAIL).unwrap();
        wait_for(|| tail.load(Ordering::Acquire) == count);
    }

    /// The next entry of the event ring: handle and kinds.
    pub fn event(&self, head: u32) -> (u32, u32) {
        let (handle, kinds, _) = self.event_with_cause(head);
        (handle, kinds)
    }

    /// The same with the cause.
    pub fn event_with_cause(&self, head: u32) -> (u32, u32, Cause) {
        let Context {
            layout,
            region,
            events,
            ..
        } = self.context();
        assert!(wait_readable(events, PATIENCE), "no event");
        // Readable it stays: the wakes are not taken.
        let tail = region.u32(layout.events + RingIndices::TAIL).unwrap();
        wait_for(|| tail.load(Ordering::Acquire) != head);
        let at = layout.events + RING_ENTRIES + 4 * (head & (layout.event_ring_len - 1)) as usize;
        let slot: u32 = region.read(at).unwrap();
        let store = |word: usize, value: u32| {
            region.u32(word).unwrap().store(value, Ordering::Release);
        };
        store(layout.events + RingIndices::HEAD, head + 1);
        let at = layout.event_slots + slot as usize * size_of::<EventSlot>();
        let (kinds, handle) = event::take(&region.u32(at).unwrap(), || {
            let handle = region.read::<u32>(at + EventSlot::HANDLE).unwrap();
            (handle, region.read::<Cause>(at + EventSlot::CAUSE).unwrap())
        });
        let (handle, cause) = handle.unwrap_or_default();
        (handle, kinds, cause)
    }
}

/// Mask of INIT to RTR.
pub const RTR: u32 = qp_mask::STATE
    | qp_mask::AV
    | qp_mask::PATH_MTU
    | qp_mask::DEST_QPN
    | qp_mask::RQ_PSN
    | qp_mask::MAX_DEST_RD_ATOMIC
    | qp_mask::MIN_RNR_TIMER;

/// An address vector from the first GID.
pub fn av(dgid: &str) -> Av {
    let dgid = crate::device::Gid::from(dgid.parse::<std::net::IpAddr>().unwrap()).0;
    Av {
        dgid,
        ..Av::default()
    }
}

/// Attributes of INIT to RTR.
pub fn rtr(dgid: &str, dest_qp_num: u32) -> QpAttrs {
    QpAttrs {
        qp_state: 2,
        path_mtu: 3,
        dest_qp_num,
        ah_attr: av(dgid),
        ..QpAttrs::default()
    }
}
