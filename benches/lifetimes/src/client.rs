//! A client that sends one request after another and nothing else: no library between the measurement and the daemon.
use std::{os::fd::OwnedFd, path::Path, time::Duration};

use anyhow::{Context as _, bail, ensure};
use rnic_abi::{
    ABI_VERSION, Av, CONTROL_MAGIC, CreateCq, CreateCqReply, CreateQp, CreateQpReply, DestroyReply,
    DeviceArg, Empty, GidArg, GidReply, HandleArg, HandleReply, Hello, HelloReply, MAX_PACKET, ModifyQp, Op,
    QpAttrs, ReplyHeader, RequestHeader, qp_mask,
};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType, recv, send, socket_with,
    sockopt,
};
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// `enum ibv_qp_type`.
const RC: u32 = 2;
/// Longer than any verb takes.
const PATIENCE: Duration = Duration::from_secs(30);

/// A session, with its device's first GID.
pub struct Client {
    socket: OwnedFd,
    session: u64,
    sequence: u64,
    gid: [u8; 16],
    depth: u32,
}

/// A QP that was made.
#[derive(Copy, Clone, Debug)]
pub struct Qp {
    handle: u32,
    qpn: u32,
}

impl Client {
    /// Says hello to the daemon at `path`; work queues will have `depth` units.
    pub fn connect(path: &Path, depth: u32) -> anyhow::Result<Self> {
        let socket = socket_with(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )?;
        rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)
            .with_context(|| format!("connecting to {}", path.display()))?;
        sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, Some(PATIENCE))?;
        let mut client = Client {
            socket,
            session: 0,
            sequence: 0,
            gid: [0; 16],
            depth,
        };
        // The descriptors that come with it are not taken: this client posts nothing.
        let hello: HelloReply = client.call(Op::Hello, &Hello::default())?;
        client.session = hello.session;
        client.gid = client.call::<GidReply>(Op::QueryGid, &GidArg::default())?.gid;
        Ok(client)
    }

    /// Allocates a PD.
    pub fn pd(&mut self) -> anyhow::Result<u32> {
        Ok(self
            .call::<HandleReply>(Op::AllocPd, &DeviceArg::default())?
            .handle)
    }

    /// Creates a small CQ.
    pub fn cq(&mut self) -> anyhow::Result<u32> {
        let arg = CreateCq {
            depth: 64,
            ..CreateCq::default()
        };
        Ok(self.call::<CreateCqReply>(Op::CreateCq, &arg)?.handle)
    }

    /// Creates an RC QP.
    pub fn create(&mut self, pd: u32, cq: u32) -> anyhow::Result<Qp> {
        let arg = CreateQp {
            pd,
            send_cq: cq,
            recv_cq: cq,
            qp_type: RC,
            sq_units: self.depth,
            rq_units: self.depth,
            ..CreateQp::default()
        };
        let CreateQpReply { handle, qpn, .. } = self.call(Op::CreateQp, &arg)?;
        Ok(Qp { handle, qpn })
    }

    /// Creates an RC QP and connects it to itself: then its core has it, and frames find it.
    pub fn create_connected(&mut self, pd: u32, cq: u32) -> anyhow::Result<Qp> {
        let qp = self.create(pd, cq)?;
        self.to_init(qp)?;
        self.to_rtr(qp)?;
        self.to_rts(qp)?;
        Ok(qp)
    }

    /// RESET to INIT.
    pub fn to_init(&mut self, qp: Qp) -> anyhow::Result<()> {
        let attrs = QpAttrs {
            qp_state: 1,
            port_num: 1,
            ..QpAttrs::default()
        };
        let mask = qp_mask::STATE | qp_mask::PORT | qp_mask::PKEY_INDEX | qp_mask::ACCESS_FLAGS;
        self.modify(qp, mask, attrs)
    }

    /// INIT to RTR, connected to itself.
    pub fn to_rtr(&mut self, qp: Qp) -> anyhow::Result<()> {
        let attrs = QpAttrs {
            qp_state: 2,
            path_mtu: 3,
            dest_qp_num: qp.qpn,
            max_dest_rd_atomic: 1,
            min_rnr_timer: 12,
            ah_attr: Av {
                dgid: self.gid,
                ..Av::default()
            },
            ..QpAttrs::default()
        };
        let mask = qp_mask::STATE
            | qp_mask::AV
            | qp_mask::PATH_MTU
            | qp_mask::DEST_QPN
            | qp_mask::RQ_PSN
            | qp_mask::MAX_DEST_RD_ATOMIC
            | qp_mask::MIN_RNR_TIMER;
        self.modify(qp, mask, attrs)
    }

    /// RTR to RTS.
    pub fn to_rts(&mut self, qp: Qp) -> anyhow::Result<()> {
        let attrs = QpAttrs {
            qp_state: 3,
            timeout: 14,
            retry_cnt: 7,
            rnr_retry: 7,
            max_rd_atomic: 1,
            ..QpAttrs::default()
        };
        let mask = qp_mask::STATE
            | qp_mask::SQ_PSN
            | qp_mask::TIMEOUT
            | qp_mask::RETRY_CNT
            | qp_mask::RNR_RETRY
            | qp_mask::MAX_QP_RD_ATOMIC;
        self.modify(qp, mask, attrs)
    }

    /// Destroys a QP; when this returns it is gone.
    pub fn destroy(&mut self, qp: Qp) -> anyhow::Result<()> {
        let arg = HandleArg {
            handle: qp.handle,
            reserved: 0,
        };
        self.call::<DestroyReply>(Op::DestroyQp, &arg).map(drop)
    }

    fn modify(&mut self, qp: Qp, mask: u32, attrs: QpAttrs) -> anyhow::Result<()> {
        let handle = qp.handle;
        self.call::<Empty>(Op::ModifyQp, &ModifyQp { handle, mask, attrs })
            .map(drop)
    }

    fn call<R: FromBytes>(&mut self, op: Op, body: &(impl IntoBytes + Immutable)) -> anyhow::Result<R> {
        self.sequence += 1;
        let body = body.as_bytes();
        let header = RequestHeader {
            magic: CONTROL_MAGIC,
            version: ABI_VERSION as u16,
            op: op as u16,
            session: self.session,
            sequence: self.sequence,
            body_len: body.len() as u32,
            reserved: 0,
        };
        let mut packet = [0u8; MAX_PACKET];
        let len = size_of::<RequestHeader>() + body.len();
        packet[..size_of::<RequestHeader>()].copy_from_slice(header.as_bytes());
        packet[size_of::<RequestHeader>()..len].copy_from_slice(body);
        send(&self.socket, &packet[..len], SendFlags::NOSIGNAL)
            .with_context(|| format!("sending {}", op.name()))?;
        let (len, _) = recv(&self.socket, &mut packet[..], RecvFlags::empty())
            .with_context(|| format!("waiting for the reply to {}", op.name()))?;
        let Ok((header, body)) = ReplyHeader::read_from_prefix(&packet[..len]) else {
            bail!("{}: rnicd closed the connection", op.name());
        };
        ensure!(
            header.sequence == self.sequence,
            "the reply to another request came"
        );
        if header.status != 0 {
            bail!("{}: {}", op.name(), String::from_utf8_lossy(body));
        }
        R::read_from_bytes(body).map_err(|_| anyhow::anyhow!("{}: a reply of the wrong length", op.name()))
    }
}
