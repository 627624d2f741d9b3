//! Control requests over the `SOCK_SEQPACKET` socket: one request a packet, one reply a packet, in order.
//!
//! A request is [`RequestHeader`] and the body its [`Op`] names; a reply is [`ReplyHeader`] and, on success,
//! the reply body, on failure up to [`MAX_ERROR_TEXT`] bytes of UTF-8 that say what was wrong. Descriptors
//! travel by `SCM_RIGHTS` with the packet they belong to. Replaying the last (session, sequence) returns the
//! kept reply.
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// First four bytes of each request and reply: `rnic`.
pub const CONTROL_MAGIC: u32 = u32::from_le_bytes(*b"rnic");
/// Largest packet either side sends.
pub const MAX_PACKET: usize = 4096;
/// Longest error text in a reply.
pub const MAX_ERROR_TEXT: usize = 512;

macro_rules! wire_struct {
    ($($(#[$doc:meta])* $name:ident { $($(#[$fdoc:meta])* $field:ident : $ty:ty,)* })*) => {$(
        $(#[$doc])*
        #[derive(Copy, Clone, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
        #[repr(C)]
        pub struct $name { $($(#[$fdoc])* pub $field: $ty,)* }
    )*};
}

macro_rules! ops {
    ($($(#[$doc:meta])* $name:ident = $number:literal, $text:literal;)*) => {
        /// What a request asks for.
        #[derive(Copy, Clone, Debug, PartialEq, Eq)]
        #[repr(u16)]
        pub enum Op { $($(#[$doc])* $name = $number,)* }

        impl Op {
            /// The operation with this number.
            pub const fn from_u16(number: u16) -> Option<Op> {
                match number { $($number => Some(Op::$name),)* _ => None }
            }
            /// Its name in verbs terms.
            pub const fn name(self) -> &'static str {
                match self { $(Op::$name => $text,)* }
            }
        }
    };
}

ops! {
    /// [`Hello`] → [`HelloReply`], descriptors: region, async event socket, then a wake socket a core.
    Hello = 1, "hello";
    /// [`DeviceArg`] → [`DeviceReply`].
    QueryDevice = 2, "query_device";
    /// [`DeviceArg`] → [`PortReply`].
    QueryPort = 3, "query_port";
    /// [`GidArg`] → [`GidReply`].
    QueryGid = 4, "query_gid";
    /// [`DeviceArg`] → [`HandleReply`].
    AllocPd = 10, "alloc_pd";
    /// [`HandleArg`] → [`Empty`].
    DeallocPd = 11, "dealloc_pd";
    /// [`RegMr`] and the memfd → [`RegMrReply`].
    RegMr = 12, "reg_mr";
    /// [`DeregMr`] → [`Empty`].
    DeregMr = 13, "dereg_mr";
    /// [`Empty`] → [`HandleReply`] and the channel's socket.
    CreateCompChannel = 14, "create_comp_channel";
    /// [`HandleArg`] → [`Empty`].
    DestroyCompChannel = 15, "destroy_comp_channel";
    /// [`CreateCq`] → [`CreateCqReply`].
    CreateCq = 16, "create_cq";
    /// [`HandleArg`] → [`DestroyReply`].
    DestroyCq = 17, "destroy_cq";
    /// [`CreateQp`] → [`CreateQpReply`].
    CreateQp = 18, "create_qp";
    /// [`ModifyQp`] → [`Empty`].
    ModifyQp = 19, "modify_qp";
    /// [`HandleArg`] → [`QueryQpReply`].
    QueryQp = 20, "query_qp";
    /// [`HandleArg`] → [`DestroyReply`].
    DestroyQp = 21, "destroy_qp";
    /// [`CreateAh`] → [`CreateAhReply`].
    CreateAh = 22, "create_ah";
    /// [`HandleArg`] → [`QueryAhReply`].
    QueryAh = 23, "query_ah";
    /// [`HandleArg`] → [`Empty`].
    DestroyAh = 24, "destroy_ah";
    /// [`CreateSrq`] → [`CreateSrqReply`].
    CreateSrq = 30, "create_srq";
    /// [`ModifySrq`] → [`Empty`].
    ModifySrq = 31, "modify_srq";
    /// [`HandleArg`] → [`QuerySrqReply`].
    QuerySrq = 32, "query_srq";
    /// [`HandleArg`] → [`DestroyReply`].
    DestroySrq = 33, "destroy_srq";
    /// [`AllocMw`] → [`AllocMwReply`].
    AllocMw = 50, "alloc_mw";
    /// [`HandleArg`] → [`Empty`].
    DeallocMw = 51, "dealloc_mw";
    /// [`McastArg`] → [`Empty`].
    AttachMcast = 40, "attach_mcast";
    /// [`McastArg`] → [`Empty`].
    DetachMcast = 41, "detach_mcast";
    /// [`OpenXrcd`] and any open file → [`OpenXrcdReply`].
    OpenXrcd = 60, "open_xrcd";
    /// [`DeviceArg`] → [`OpenXrcdReply`]: a domain that no file stands for.
    AllocXrcd = 61, "alloc_xrcd";
    /// [`HandleArg`] → [`Empty`].
    CloseXrcd = 62, "close_xrcd";
    /// [`CreateXrcSrq`] → [`CreateSrqReply`].
    CreateXrcSrq = 63, "create_xrc_srq";
    /// [`HandleArg`] of a domain → [`OpenQpReply`].
    CreateXrcTgt = 64, "create_xrc_tgt";
    /// [`OpenQp`] → [`OpenQpReply`].
    OpenQp = 65, "open_qp";
    /// [`ResizeCq`] → [`ResizeCqReply`].
    ResizeCq = 70, "resize_cq";
    /// [`ResizeCqDone`] → [`Empty`].
    ResizeCqDone = 71, "resize_cq_done";
    /// [`ModifyCq`] → [`Empty`].
    ModifyCq = 72, "modify_cq";
    /// [`HandleArg`] → [`QueryCqReply`].
    QueryCq = 73, "query_cq";
    /// [`DeviceArg`] → [`RtValuesReply`].
    QueryRtValues = 74, "query_rt_values";
    /// [`PkeyArg`] → [`PkeyReply`].
    QueryPkey = 75, "query_pkey";
}

wire_struct! {
    /// Starts each request.
    RequestHeader {
        /// [`CONTROL_MAGIC`].
        magic: u32,
        /// [`crate::ABI_VERSION`].
        version: u16,
        /// [`Op`].
        op: u16,
        /// From [`HelloReply`]; zero in the hello.
        session: u64,
        /// Counts the requests of a session from 1.
        sequence: u64,
        /// Bytes of the body.
        body_len: u32,
        /// Zero.
        reserved: u32,
    }
    /// Starts each reply.
    ReplyHeader {
        /// [`CONTROL_MAGIC`].
        magic: u32,
        /// Zero, or the errno.
        status: i32,
        /// The request's session.
        session: u64,
        /// The request's sequence.
        sequence: u64,
        /// Bytes that follow: the body, or the error text.
        body_len: u32,
        /// [`Op`] of the request.
        op: u32,
    }
    /// No body.
    Empty {}
    /// First request of a session.
    Hello {
        /// Features the client understands.
        features: u64,
        /// Zero.
        reserved: [u64; 3],
    }
    /// What the session has.
    HelloReply {
        /// Number of the session.
        session: u64,
        /// Changes with every start of the daemon.
        boot_epoch: u64,
        /// Length of the region.
        region_size: u64,
        /// Devices there are; they are numbered from 0.
        devices: u32,
        /// Poll cores, as many wake sockets follow.
        cores: u32,
        /// Objects the client may have.
        max_objects: u32,
        /// Zero.
        reserved: u32,
    }
    /// Names a device.
    DeviceArg {
        /// From 0.
        device: u32,
        /// Zero.
        reserved: u32,
    }
    /// Names an object.
    HandleArg {
        /// From the create reply.
        handle: u32,
        /// Zero.
        reserved: u32,
    }
    /// The object made.
    HandleReply {
        /// Its handle.
        handle: u32,
        /// Zero.
        reserved: u32,
    }
    /// What a device can do.
    DeviceReply {
        /// Name, padded with zeros.
        name: [u8; 32],
        /// Version of the daemon, padded with zeros.
        fw_ver: [u8; 32],
        /// GUID.
        node_guid: u64,
        /// Largest region.
        max_mr_size: u64,
        /// Quotas of this client.
        max_qp: u32,
        /// Units of a work queue.
        max_qp_wr: u32,
        /// Entries of a WQE.
        max_sge: u32,
        /// Inline bytes of a WQE.
        max_inline: u32,
        /// CQs.
        max_cq: u32,
        /// Entries of a CQ.
        max_cqe: u32,
        /// MRs.
        max_mr: u32,
        /// PDs.
        max_pd: u32,
        /// READs and atomics a QP may have outstanding as responder.
        max_qp_rd_atom: u32,
        /// READs and atomics a QP may have outstanding as requester.
        max_qp_init_rd_atom: u32,
        /// Entries of the GID table.
        gids: u32,
        /// Ports; always 1.
        ports: u32,
        /// Bits of `enum ibv_device_cap_flags`.
        cap_flags: u64,
        /// Page sizes that memory may be registered by, as bits.
        page_size_cap: u64,
        /// Which bits of a completion's timestamp count.
        timestamp_mask: u64,
        /// Ticks of that clock in a millisecond (kHz).
        core_clock_khz: u64,
        /// `enum ibv_atomic_cap`: 2, atomic for processors too.
        atomic_cap: u32,
        /// READs and atomics outstanding as responder, of all QPs.
        max_res_rd_atom: u32,
        /// SRQs.
        max_srq: u32,
        /// Units of an SRQ.
        max_srq_wr: u32,
        /// Entries of a receive of an SRQ.
        max_srq_sge: u32,
        /// Address handles.
        max_ah: u32,
        /// Multicast groups with members.
        max_mcast_grp: u32,
        /// QPs attached to one group.
        max_mcast_qp_attach: u32,
        /// Entries of the P_Key table.
        max_pkeys: u32,
        /// Exponent of the time an ACK may take here: 4.096 µs × 2^delay.
        local_ca_ack_delay: u32,
        /// Largest count of [`ModifyCq`].
        max_cq_count: u32,
        /// Largest period of [`ModifyCq`].
        max_cq_period: u32,
    }
    /// State of a device's port.
    PortReply {
        /// `enum ibv_port_state`: 1 down, 4 active.
        state: u32,
        /// `enum ibv_mtu` of the largest path MTU.
        max_mtu: u32,
        /// `enum ibv_mtu` in force.
        active_mtu: u32,
        /// MTU of the link in bytes.
        link_mtu: u32,
        /// Entries of the GID table.
        gids: u32,
        /// Megabits a second, zero when unknown.
        speed_mbps: u32,
        /// MAC address.
        mac: [u8; 6],
        /// Entries of the P_Key table.
        pkeys: u16,
        /// Bytes of the longest message.
        max_msg_sz: u32,
        /// `enum ibv_port_phys_state`: 3 disabled, 5 link up.
        phys_state: u32,
    }
    /// Names an entry of a GID table.
    GidArg {
        /// Device, from 0.
        device: u32,
        /// Index, from 0.
        index: u32,
    }
    /// An entry of a GID table.
    GidReply {
        /// The GID: an IPv6 address, or an IPv4 address mapped into one.
        gid: [u8; 16],
        /// 2: RoCE v2.
        kind: u32,
        /// VLAN, or 0xFFFF.
        vlan: u32,
    }
    /// Registers memory; the memfd comes with the request.
    RegMr {
        /// PD.
        pd: u32,
        /// `enum ibv_access_flags`, and [`INVALIDATABLE`].
        access: u32,
        /// Where the region begins in the memfd; a multiple of the page size.
        fd_offset: u64,
        /// Bytes.
        length: u64,
        /// Address by which work requests and peers name the first byte.
        iova: u64,
    }
    /// The region made.
    RegMrReply {
        /// Handle.
        handle: u32,
        /// Local key.
        lkey: u32,
        /// Remote key.
        rkey: u32,
        /// Zero.
        reserved: u32,
    }
    /// Deregisters memory. From the moment the request is carried out the region's key is refused.
    DeregMr {
        /// Region.
        handle: u32,
        /// [`DEREG_NONBLOCK`] or zero.
        flags: u32,
    }
    /// Makes a memory window, which work requests bind.
    AllocMw {
        /// PD.
        pd: u32,
        /// `enum ibv_mw_type`: 1 is bound for all QPs of its PD, 2 for the QP it was bound on.
        mw_type: u32,
    }
    /// The window made, not bound.
    AllocMwReply {
        /// Handle.
        handle: u32,
        /// Its key; the lowest byte is what a bind says.
        rkey: u32,
    }
    /// Makes a CQ.
    CreateCq {
        /// Device, from 0.
        device: u32,
        /// Entries wanted; rounded up to a power of two.
        depth: u32,
        /// Completion channel, or 0.
        channel: u32,
        /// Zero.
        reserved: u32,
    }
    /// The CQ made.
    CreateCqReply {
        /// Handle.
        handle: u32,
        /// Entries of each sub-ring.
        depth: u32,
        /// Sub-rings.
        subrings: u32,
        /// Zero.
        reserved: u32,
        /// Where it stands in the region.
        offset: u64,
    }
    /// Resizes a CQ, which goes on in another place. When this is answered no core writes to the old place any more: the
    /// completions that stand there, up to the tails, were carried over, and are older than those in the new one. The arm
    /// word is the new place's, and is not armed. The client reads what is left in the old place, then says
    /// [`Op::ResizeCqDone`]; until then the old place is its own. Nobody polls or arms the CQ meanwhile.
    ///
    /// Asked again with the same depth before that, it is answered the same.
    ResizeCq {
        /// CQ.
        handle: u32,
        /// Entries wanted; rounded up to a power of two. As many as wait in any sub-ring, at least.
        depth: u32,
    }
    /// Where a CQ is now. Its indices go on: each sub-ring begins where the tail of the old one stands.
    ResizeCqReply {
        /// Where it stands in the region.
        offset: u64,
        /// Entries of each sub-ring.
        depth: u32,
        /// Sub-rings.
        subrings: u32,
    }
    /// What was left in the old place of a resized CQ was read, and the place is the daemon's again.
    ResizeCqDone {
        /// CQ.
        handle: u32,
        /// Not zero: wake the CQ's channel, since completions came that nobody could arm the CQ for.
        wake: u32,
    }
    /// Moderates a CQ: an armed one wakes its client when a core has placed so many completions, or so long after the
    /// first of them, whichever comes first. A count of 0 or 1 and a period of 0 wake at once.
    ModifyCq {
        /// CQ.
        handle: u32,
        /// Completions of one core; above 1 there must be a period.
        count: u16,
        /// Microseconds.
        period: u16,
    }
    /// A CQ.
    QueryCqReply {
        /// Entries of each sub-ring.
        depth: u32,
        /// Sub-rings.
        subrings: u32,
        /// Completions that wait, of all sub-rings.
        waiting: u32,
        /// As in [`ModifyCq`].
        count: u16,
        /// As in [`ModifyCq`].
        period: u16,
        /// Not zero: it has overflowed, and nothing is completed to it any more.
        failed: u32,
        /// Zero.
        reserved: u32,
    }
    /// What changes all the time.
    RtValuesReply {
        /// The clock of [`crate::Cqe::timestamp`] now: nanoseconds.
        raw_clock: u64,
    }
    /// Names an entry of a P_Key table.
    PkeyArg {
        /// Device, from 0.
        device: u32,
        /// Index, from 0.
        index: u32,
    }
    /// An entry of a P_Key table.
    PkeyReply {
        /// The P_Key: 0xFFFF, full member of the default partition.
        pkey: u32,
        /// Zero.
        reserved: u32,
    }
    /// Makes a QP.
    CreateQp {
        /// PD.
        pd: u32,
        /// CQ of the send queue.
        send_cq: u32,
        /// CQ of the receive queue.
        recv_cq: u32,
        /// `enum ibv_qp_type`: RC (2), UC (3), UD (4), or XRC initiator (9), which has no receive queue: `recv_cq`, `rq_units`
        /// and `srq` are zero.
        qp_type: u32,
        /// Units of the send queue wanted; rounded up to a power of two.
        sq_units: u32,
        /// Units of the receive queue wanted.
        rq_units: u32,
        /// Not zero: every send WQE is signalled.
        sq_sig_all: u32,
        /// SRQ it draws its receives from, or zero; then it has a receive queue of its own.
        srq: u32,
    }
    /// Opens an XRC domain. The file comes with the request: whoever opens the same file (device and inode) opens the
    /// same domain.
    OpenXrcd {
        /// Device, from 0.
        device: u32,
        /// [`xrcd_flags`].
        flags: u32,
    }
    /// The domain opened.
    OpenXrcdReply {
        /// Handle; each opening has its own.
        handle: u32,
        /// Number of the domain, the same for all who hold it.
        xrcdn: u32,
    }
    /// An XRC SRQ to be made.
    CreateXrcSrq {
        /// Domain, whose target QPs it serves.
        xrcd: u32,
        /// Protection domain of the memory that its receives, and the keys of requests that name it, may touch.
        pd: u32,
        /// CQ of its receives.
        cq: u32,
        /// Receives wanted; more may be made.
        max_wr: u32,
        /// Entries of a receive, at most.
        max_sge: u32,
        /// Zero.
        reserved: u32,
    }
    /// Opens a target QP that another client may have made.
    OpenQp {
        /// Domain it is of.
        xrcd: u32,
        /// Its number.
        qpn: u32,
    }
    /// A target QP. Whoever has a handle of it may change it, and hears its events; it is destroyed with its last handle.
    OpenQpReply {
        /// Handle.
        handle: u32,
        /// Number on the wire.
        qpn: u32,
    }
    /// An SRQ to be made.
    CreateSrq {
        /// Protection domain of the memory its receives name.
        pd: u32,
        /// Receives wanted; more may be made.
        max_wr: u32,
        /// Entries of a receive, at most.
        max_sge: u32,
        /// Zero.
        reserved: u32,
    }
    /// The SRQ made. Its ring is one of WQEs of `stride` units each, whose unit count says so, however few their entries
    /// need. Nobody is told of what is posted.
    CreateSrqReply {
        /// Handle.
        handle: u32,
        /// Number.
        srqn: u32,
        /// Where its ring stands in the region.
        offset: u64,
        /// Units of the ring.
        depth: u32,
        /// Units of each receive.
        stride: u32,
        /// Receives it holds.
        max_wr: u32,
        /// Entries of each.
        max_sge: u32,
    }
    /// Changes an SRQ.
    ModifySrq {
        /// The SRQ.
        handle: u32,
        /// [`srq_mask`].
        mask: u32,
        /// Receives wanted.
        max_wr: u32,
        /// SRQ_LIMIT_REACHED comes, once, when fewer receives are posted: at once if they are already. 0 for never.
        srq_limit: u32,
    }
    /// Attributes of an SRQ.
    QuerySrqReply {
        /// Receives it holds.
        max_wr: u32,
        /// Entries of each.
        max_sge: u32,
        /// The limit, or 0 when it is not armed (any more).
        srq_limit: u32,
        /// Zero.
        reserved: u32,
    }
    /// The QP made.
    CreateQpReply {
        /// Handle; its slot is the doorbell bit.
        handle: u32,
        /// Number on the wire.
        qpn: u32,
        /// Where the send queue stands in the region.
        sq_offset: u64,
        /// Where the receive queue stands in the region.
        rq_offset: u64,
        /// Units of the send queue.
        sq_depth: u32,
        /// Units of the receive queue.
        rq_depth: u32,
        /// Doorbell block to ring.
        doorbell_block: u32,
        /// Zero.
        reserved: u32,
    }
    /// Address vector: the path to the peer.
    Av {
        /// GID of the peer.
        dgid: [u8; 16],
        /// Flow label, 20 bits.
        flow_label: u32,
        /// Index of the local GID.
        sgid_index: u8,
        /// Hop limit; 0 means 64.
        hop_limit: u8,
        /// Traffic class: DSCP in the upper six bits; the lower two are congestion control's.
        traffic_class: u8,
        /// Service level, 0 to 7: the priority in the VLAN tag, if the local GID has a VLAN.
        sl: u8,
    }
    /// Attributes of a QP, named as in `struct ibv_qp_attr`; a mask says which count.
    QpAttrs {
        /// `enum ibv_qp_state`.
        qp_state: u8,
        /// `enum ibv_qp_state`.
        cur_qp_state: u8,
        /// `enum ibv_mtu`.
        path_mtu: u8,
        /// Not zero: notify when the send queue is drained.
        en_sqd_async_notify: u8,
        /// Port, 1.
        port_num: u8,
        /// Exponent of the local ACK timeout: 4.096 µs × 2^timeout, 0 is none.
        timeout: u8,
        /// Retries without progress, 0 to 7.
        retry_cnt: u8,
        /// RNR retries, 7 is for ever.
        rnr_retry: u8,
        /// RNR timer code, 0 to 31.
        min_rnr_timer: u8,
        /// READs and atomics outstanding as requester.
        max_rd_atomic: u8,
        /// READs and atomics outstanding as responder.
        max_dest_rd_atomic: u8,
        /// `enum ibv_mig_state`; 0 (migrated), since there are no alternate paths.
        path_mig_state: u8,
        /// Index of the P_Key; 0.
        pkey_index: u16,
        /// Told by a query: not zero while the send queue drains (SQD). Zero in a change.
        sq_draining: u8,
        /// What both ends have agreed on beyond the specification: [`qp_features`].
        features: u8,
        /// `enum ibv_access_flags`.
        qp_access_flags: u32,
        /// Q_Key (UD).
        qkey: u32,
        /// PSN expected first.
        rq_psn: u32,
        /// PSN sent first.
        sq_psn: u32,
        /// QPN of the peer.
        dest_qp_num: u32,
        /// The path.
        ah_attr: Av,
    }
    /// Changes a QP.
    ModifyQp {
        /// QP.
        handle: u32,
        /// `enum ibv_qp_attr_mask`.
        mask: u32,
        /// The values.
        attrs: QpAttrs,
    }
    /// State of a QP.
    QueryQpReply {
        /// The attributes.
        attrs: QpAttrs,
        /// Cause of the error, when in the error state.
        cause: crate::Cause,
        /// What it was made with.
        init: QpInitAttrs,
    }
    /// What a QP was made with, in the sizes it has.
    QpInitAttrs {
        /// `enum ibv_qp_type`.
        qp_type: u32,
        /// Units of the send queue.
        sq_units: u32,
        /// Units of the receive queue; 0 when it draws from an SRQ.
        rq_units: u32,
        /// Not zero: every send WQE is signalled.
        sq_sig_all: u32,
        /// PD.
        pd: u32,
        /// CQ of the send queue.
        send_cq: u32,
        /// CQ of the receive queue.
        recv_cq: u32,
        /// SRQ, or zero.
        srq: u32,
    }
    /// Makes an address handle.
    CreateAh {
        /// PD; only QPs of it may send through the handle.
        pd: u32,
        /// Bits of [`ah_flags`].
        flags: u32,
        /// The path.
        ah_attr: Av,
    }
    /// The address handle made.
    CreateAhReply {
        /// Handle.
        handle: u32,
        /// Its number, as UD work requests name it; 24 bits.
        ah: u32,
    }
    /// An address handle.
    QueryAhReply {
        /// The path it was made with.
        ah_attr: Av,
        /// Its number.
        ah: u32,
        /// MAC address of the next hop as it is now; zero when the handle has no path any more.
        next_hop: [u8; 6],
        /// Zero.
        reserved: [u8; 2],
    }
    /// Attaches a UD QP to a multicast group, or detaches it.
    McastArg {
        /// QP.
        handle: u32,
        /// Zero.
        reserved: u32,
        /// GID of the group.
        mgid: [u8; 16],
    }
    /// A destroyed object.
    DestroyReply {
        /// Events of the object that reached the ring and were not withdrawn; the library waits until as many
        /// were acknowledged.
        events_reported: u32,
        /// Zero.
        reserved: u32,
    }
}

/// Bits of [`CreateAh::flags`].
pub mod ah_flags {
    /// Do not wait for the next hop's MAC address: what is not known at once is EAGAIN (it is being asked for) or
    /// EHOSTUNREACH (nobody answered for it).
    pub const NON_BLOCKING: u32 = 1;
}

/// Bits of [`OpenXrcd::flags`], as `ibv_open_xrcd` has them in `oflags`.
pub mod xrcd_flags {
    /// Make the domain if the file stands for none.
    pub const CREATE: u32 = 1;
    /// With `CREATE`: refuse if the file stands for one already.
    pub const EXCLUSIVE: u32 = 2;
}

/// Bit of [`RegMr::access`], beside those of verbs: the region's key may be invalidated by a LOCAL_INV of its
/// owner and by a SEND with invalidate of a peer, on QPs of its PD. (In verbs that is the privilege of
/// fast-register regions and type-2 windows, which are made in another way.) The region remains, and is to be
/// deregistered.
pub const INVALIDATABLE: u32 = 1 << 30;

/// Bit of [`DeregMr::flags`]: do not wait for the poll cores. EAGAIN then means: the key is invalid for good and
/// no packet handled from now on touches the memory, but one in progress still may; the handle is valid, and the
/// request is to be repeated (in either form) to end it.
pub const DEREG_NONBLOCK: u32 = 1;

/// Bits of [`ModifySrq::mask`]: those of `enum ibv_srq_attr_mask`.
pub mod srq_mask {
    /// `max_wr`. An SRQ cannot be resized: EOPNOTSUPP.
    pub const MAX_WR: u32 = 1;
    /// `srq_limit`.
    pub const LIMIT: u32 = 2;
}

/// Bits of [`QpAttrs`] masks: `enum ibv_qp_attr_mask`.
pub mod qp_mask {
    #![allow(missing_docs)]
    pub const STATE: u32 = 1 << 0;
    pub const CUR_STATE: u32 = 1 << 1;
    pub const EN_SQD_ASYNC_NOTIFY: u32 = 1 << 2;
    pub const ACCESS_FLAGS: u32 = 1 << 3;
    pub const PKEY_INDEX: u32 = 1 << 4;
    pub const PORT: u32 = 1 << 5;
    pub const QKEY: u32 = 1 << 6;
    pub const AV: u32 = 1 << 7;
    pub const PATH_MTU: u32 = 1 << 8;
    pub const TIMEOUT: u32 = 1 << 9;
    pub const RETRY_CNT: u32 = 1 << 10;
    pub const RNR_RETRY: u32 = 1 << 11;
    pub const RQ_PSN: u32 = 1 << 12;
    pub const MAX_QP_RD_ATOMIC: u32 = 1 << 13;
    pub const ALT_PATH: u32 = 1 << 14;
    pub const MIN_RNR_TIMER: u32 = 1 << 15;
    pub const SQ_PSN: u32 = 1 << 16;
    pub const MAX_DEST_RD_ATOMIC: u32 = 1 << 17;
    pub const PATH_MIG_STATE: u32 = 1 << 18;
    pub const CAP: u32 = 1 << 19;
    pub const DEST_QPN: u32 = 1 << 20;
    /// Not verbs'.
    pub const FEATURES: u32 = 1 << 30;
}

/// Bits of [`QpAttrs::features`], and of the features that peers tell each other.
pub mod qp_features {
    /// Lost packets of WRITEs are sent again, and those behind them not (RC).
    pub const SELECTIVE_RETRANSMIT: u8 = 1;
}
