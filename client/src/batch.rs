//! Work requests, written straight into the queue and posted together.
use std::marker::PhantomData;

use rnic_abi::{AtomicOperands, BindOperands, FlushOperands, Wqe, wqe_flags};

use crate::queue::Writer;
use crate::{Access, Ah, Error, MemoryWindow, MrSlice, RemoteAddr, Result, WindowType};

/// `enum ibv_wr_opcode`.
mod opcode {
    pub const WRITE: u8 = 0;
    pub const WRITE_WITH_IMM: u8 = 1;
    pub const SEND: u8 = 2;
    pub const SEND_WITH_IMM: u8 = 3;
    pub const READ: u8 = 4;
    pub const COMP_SWAP: u8 = 5;
    pub const FETCH_ADD: u8 = 6;
    pub const LOCAL_INV: u8 = 7;
    pub const BIND_MW: u8 = 8;
    pub const SEND_WITH_INV: u8 = 9;
    pub const FLUSH: u8 = 14;
    pub const ATOMIC_WRITE: u8 = 15;
}

/// Kinds of work requests: they say which options a [`Wr`](crate::Wr) has.
pub mod op {
    /// SEND.
    #[derive(Debug)]
    pub enum Send {}
    /// RDMA WRITE.
    #[derive(Debug)]
    pub enum Write {}
    /// RDMA READ.
    #[derive(Debug)]
    pub enum Read {}
    /// Compare and swap, fetch and add.
    #[derive(Debug)]
    pub enum Atomic {}
    /// ATOMIC WRITE, FLUSH.
    #[derive(Debug)]
    pub enum Placement {}
    /// Memory window bind.
    #[derive(Debug)]
    pub enum Bind {}
    /// Local invalidate.
    #[derive(Debug)]
    pub enum LocalInvalidate {}
    /// Receive.
    #[derive(Debug)]
    pub enum Recv {}
}

/// Send work requests that are posted together, with one doorbell: all of them, or on an error none.
///
/// The batch holds the QP's send queue: other threads that post to it wait, and this thread must not start
/// another batch on the same QP before the end of this one. Polling is free meanwhile.
#[derive(Debug)]
#[must_use = "a batch does nothing until it is posted"]
pub struct Batch<'q> {
    writer: Writer<'q>,
    not_ready: Option<Error>,
    signal_all: bool,
}

impl<'q> Batch<'q> {
    pub(crate) fn new(writer: Writer<'q>, not_ready: Option<Error>, signal_all: bool) -> Self {
        Batch {
            writer,
            not_ready,
            signal_all,
        }
    }

    /// SEND of the bytes of `local`, one after another: an [`Mr`](crate::Mr), an [`MrSlice`], an array of them.
    pub fn send(&mut self, local: impl AsRef<[MrSlice]>) -> Wr<'_, 'q, op::Send> {
        self.append(opcode::SEND, None, local.as_ref())
    }

    /// SEND of bytes copied now into the work request.
    pub fn send_inline(&mut self, payload: &[u8]) -> Wr<'_, 'q, op::Send> {
        self.append_inline(opcode::SEND, None, payload)
    }

    /// SEND of the bytes of `local`, at most the path MTU, as a datagram (UD): through `ah`, which stays until it is done,
    /// to a QP that takes datagrams with this Q_Key. The highest bit of the Q_Key stands for that of our own QP.
    ///
    /// More bytes than the path MTU are never sent, and complete with success (IBTA C10-93.1.1).
    pub fn send_to(
        &mut self,
        local: impl AsRef<[MrSlice]>,
        ah: &Ah,
        remote_qpn: u32,
        remote_qkey: u32,
    ) -> Wr<'_, 'q, op::Send> {
        let head = self
            .head(opcode::SEND, None)
            .to(ah.number(), remote_qpn, remote_qkey);
        self.writer.append(head, local.as_ref());
        self.writer.hold_ah(ah);
        Wr::new(&mut self.writer)
    }

    /// The same of bytes copied now into the work request.
    pub fn send_inline_to(
        &mut self,
        payload: &[u8],
        ah: &Ah,
        remote_qpn: u32,
        remote_qkey: u32,
    ) -> Wr<'_, 'q, op::Send> {
        let head = self
            .head(opcode::SEND, None)
            .to(ah.number(), remote_qpn, remote_qkey);
        self.writer.append_inline(head, payload);
        self.writer.hold_ah(ah);
        Wr::new(&mut self.writer)
    }

    /// RDMA WRITE of the bytes of `local` to the peer's memory at `remote`.
    pub fn write(
        &mut self,
        local: impl AsRef<[MrSlice]>,
        remote: impl Into<RemoteAddr>,
    ) -> Wr<'_, 'q, op::Write> {
        self.append(opcode::WRITE, Some(remote.into()), local.as_ref())
    }

    /// RDMA WRITE of bytes copied now into the work request.
    pub fn write_inline(&mut self, payload: &[u8], remote: impl Into<RemoteAddr>) -> Wr<'_, 'q, op::Write> {
        self.append_inline(opcode::WRITE, Some(remote.into()), payload)
    }

    /// RDMA READ of the peer's memory at `remote` into `local`, whose region needs
    /// [`Access::LOCAL_WRITE`](crate::Access::LOCAL_WRITE).
    pub fn read(
        &mut self,
        local: impl AsRef<[MrSlice]>,
        remote: impl Into<RemoteAddr>,
    ) -> Wr<'_, 'q, op::Read> {
        self.append(opcode::READ, Some(remote.into()), local.as_ref())
    }

    /// Compares the 8 bytes of the peer's memory at `remote` with `compare` and, if they equal it, puts `swap` there.
    /// What was there before goes to `local`, whose region needs
    /// [`Access::LOCAL_WRITE`](crate::Access::LOCAL_WRITE).
    ///
    /// The peer's region needs [`Access::REMOTE_ATOMIC`](crate::Access::REMOTE_ATOMIC), and so does its QP.
    /// `remote` must be a multiple of 8, and `local` exactly 8 bytes. All numbers are in host order. It is atomic
    /// towards all other atomics on that memory, by whatever QP, and towards those of programs that map it.
    pub fn compare_swap(
        &mut self,
        local: impl AsRef<[MrSlice]>,
        remote: impl Into<RemoteAddr>,
        compare: u64,
        swap: u64,
    ) -> Wr<'_, 'q, op::Atomic> {
        self.append_atomic(opcode::COMP_SWAP, local.as_ref(), remote.into(), compare, swap)
    }

    /// Adds `add`, modulo 2^64, to the 8 bytes of the peer's memory at `remote`. What was there before goes to
    /// `local`. All else is as in [`Batch::compare_swap`].
    pub fn fetch_add(
        &mut self,
        local: impl AsRef<[MrSlice]>,
        remote: impl Into<RemoteAddr>,
        add: u64,
    ) -> Wr<'_, 'q, op::Atomic> {
        self.append_atomic(opcode::FETCH_ADD, local.as_ref(), remote.into(), add, 0)
    }

    /// ATOMIC WRITE of 8 bytes to the peer's memory at `remote`, a multiple of 8: whoever looks there finds all of the old
    /// bytes or all of the new, which lie there as they do in `bytes`. Rights are those of a WRITE. It counts as a READ, and
    /// completes when the peer has answered.
    pub fn atomic_write(
        &mut self,
        bytes: [u8; 8],
        remote: impl Into<RemoteAddr>,
    ) -> Wr<'_, 'q, op::Placement> {
        // There is always room for them, however few bytes the QP was made to carry itself.
        self.append(opcode::ATOMIC_WRITE, Some(remote.into()), &[])
            .change(|head| {
                head.flags |= wqe_flags::INLINE;
                head.inline_len = bytes.len() as u32;
                head.sges[0].addr = u64::from_ne_bytes(bytes);
            })
    }

    /// FLUSH of `len` bytes of the peer's memory at `remote`: when it completes, everything that was written there before on
    /// this QP is seen by whoever looks at the memory, on the peer's host and by whatever way. The peer's region and QP need
    /// [`Access::FLUSH_GLOBAL`]. It counts as a READ.
    ///
    /// Persistence is asked of nobody: the memory behind a `rnicd` is volatile.
    pub fn flush(&mut self, remote: impl Into<RemoteAddr>, len: u32) -> Wr<'_, 'q, op::Placement> {
        self.append_flush(remote.into(), len, false)
    }

    /// The same of the whole region, or window, of a key.
    pub fn flush_region(&mut self, rkey: u32) -> Wr<'_, 'q, op::Placement> {
        self.append_flush(RemoteAddr { addr: 0, rkey }, 0, true)
    }

    /// Binds a memory window to `local`, for peers with the rights `access`; of those, REMOTE_WRITE and REMOTE_ATOMIC need
    /// [`Access::LOCAL_WRITE`] of the region, and the region needs [`Access::MW_BIND`]. From the call on
    /// [`MemoryWindow::rkey`] is the key that the window gets: another one than before.
    ///
    /// A window of type 1 may be bound already: its old key is invalid when the bind begins. One of type 2 has to be
    /// invalidated before. It begins when everything before it is done, and what follows begins when it is done.
    pub fn bind(&mut self, window: &MemoryWindow, local: &MrSlice, access: Access) -> Wr<'_, 'q, op::Bind> {
        let key = window.next_key();
        self.append_bind(window, Some(local), access, key)
    }

    /// The same with a key byte of the caller's choice, for a window of type 2 (11.4.1.1).
    pub fn bind_as(
        &mut self,
        window: &MemoryWindow,
        local: &MrSlice,
        access: Access,
        key_byte: u8,
    ) -> Wr<'_, 'q, op::Bind> {
        if window.kind() == WindowType::One {
            self.writer.refuse(Error::InvalidArgument(
                "the key byte of a memory window of type 1 is not chosen".into(),
            ));
        }
        self.append_bind(window, Some(local), access, window.key_with(key_byte))
    }

    /// Unbinds a memory window of type 1 (a bind to no bytes). One of type 2 is unbound by
    /// [`Batch::local_invalidate`].
    pub fn unbind(&mut self, window: &MemoryWindow) -> Wr<'_, 'q, op::Bind> {
        let key = window.next_key();
        self.append_bind(window, None, Access::NONE, key)
    }

    /// Makes a key of ours invalid, of a memory window of type 2 that was bound on this QP, or of a region registered with
    /// [`Access::INVALIDATE`](crate::Access::INVALIDATE). It begins when everything before it is done, what
    /// follows begins when it is done; then nobody uses the key any more.
    pub fn local_invalidate(&mut self, key: u32) -> Wr<'_, 'q, op::LocalInvalidate> {
        let wr: Wr<'_, 'q, op::LocalInvalidate> = self.append(opcode::LOCAL_INV, None, &[]);
        // It goes nowhere.
        wr.writer.address(0);
        wr.change(|head| head.imm_or_rkey = key)
    }

    /// Posts the batch and tells how many work requests it has.
    pub fn post(self) -> Result<usize> {
        match self.not_ready {
            Some(error) => Err(error),
            None => self.writer.commit(),
        }
    }

    fn append<K>(&mut self, opcode: u8, remote: Option<RemoteAddr>, local: &[MrSlice]) -> Wr<'_, 'q, K> {
        let head = self.head(opcode, remote);
        self.writer.append(head, local);
        Wr::new(&mut self.writer)
    }

    fn append_flush(&mut self, remote: RemoteAddr, length: u32, whole: bool) -> Wr<'_, 'q, op::Placement> {
        let operands = FlushOperands {
            length,
            placement: 1,
            selectivity: whole.into(),
            ..FlushOperands::default()
        };
        let wr = self.append(opcode::FLUSH, Some(remote), &[]);
        wr.change(|head| head.sges[1] = operands.into())
    }

    fn append_bind(
        &mut self,
        window: &MemoryWindow,
        local: Option<&MrSlice>,
        access: Access,
        key: u32,
    ) -> Wr<'_, 'q, op::Bind> {
        let remote = local.map(|local| RemoteAddr {
            addr: local.addr(),
            rkey: local.lkey(),
        });
        let mut head = self.head(opcode::BIND_MW, remote);
        head.imm_or_rkey = key;
        self.writer.append(head, &[]);
        self.writer.hold_window(window, local, key);
        let operands = BindOperands {
            length: local.map_or(0, |local| local.len() as u64),
            access: access.bits(),
            reserved: 0,
        };
        Wr::new(&mut self.writer).change(|head| head.sges[1] = operands.into())
    }

    fn append_atomic(
        &mut self,
        opcode: u8,
        local: &[MrSlice],
        remote: RemoteAddr,
        compare_add: u64,
        swap: u64,
    ) -> Wr<'_, 'q, op::Atomic> {
        if let [one] = local
            && one.len() == size_of::<u64>()
        {
            let operands = AtomicOperands { compare_add, swap };
            let wr = self.append(opcode, Some(remote), local);
            wr.change(|head| head.sges[1] = operands.into())
        } else {
            let bytes: usize = local.iter().map(MrSlice::len).sum();
            self.writer.refuse(Error::InvalidArgument(format!(
                "an atomic into {bytes} bytes of {} slices; it needs one slice of 8 bytes",
                local.len()
            )));
            Wr::new(&mut self.writer)
        }
    }

    fn append_inline<K>(&mut self, opcode: u8, remote: Option<RemoteAddr>, payload: &[u8]) -> Wr<'_, 'q, K> {
        let head = self.head(opcode, remote);
        self.writer.append_inline(head, payload);
        Wr::new(&mut self.writer)
    }

    fn head(&self, opcode: u8, remote: Option<RemoteAddr>) -> Wqe {
        let remote = remote.unwrap_or(RemoteAddr { addr: 0, rkey: 0 });
        Wqe {
            opcode,
            flags: if self.signal_all { wqe_flags::SIGNALED } else { 0 },
            remote_addr: remote.addr,
            rkey: remote.rkey,
            ..Wqe::default()
        }
    }
}

/// Receives that are posted together: all of them, or on an error none. It holds the receive queue as
/// [`Batch`] does the send queue.
#[derive(Debug)]
#[must_use = "a batch does nothing until it is posted"]
pub struct RecvBatch<'q> {
    writer: Writer<'q>,
    not_ready: Option<Error>,
}

impl<'q> RecvBatch<'q> {
    pub(crate) fn new(writer: Writer<'q>, not_ready: Option<Error>) -> Self {
        RecvBatch { writer, not_ready }
    }

    /// Receives a message into `local`, which is filled in order and whose regions need
    /// [`Access::LOCAL_WRITE`](crate::Access::LOCAL_WRITE).
    pub fn recv(&mut self, local: impl AsRef<[MrSlice]>) -> Wr<'_, 'q, op::Recv> {
        self.writer.append(Wqe::default(), local.as_ref());
        Wr::new(&mut self.writer)
    }

    /// Posts the batch and tells how many receives it has.
    pub fn post(self) -> Result<usize> {
        match self.not_ready {
            Some(error) => Err(error),
            None => self.writer.commit(),
        }
    }
}

/// The work request just added to a batch, to be given its options. Errors, such as a full queue, come from
/// posting.
#[derive(Debug)]
pub struct Wr<'b, 'q, K> {
    writer: &'b mut Writer<'q>,
    kind: PhantomData<K>,
}

impl<'b, 'q, K> Wr<'b, 'q, K> {
    fn new(writer: &'b mut Writer<'q>) -> Self {
        Wr {
            writer,
            kind: PhantomData,
        }
    }

    /// The number its completion will carry; 0 if not given.
    pub fn wr_id(self, wr_id: u64) -> Self {
        if let Some((current, _)) = self.writer.current() {
            *current = wr_id;
        }
        self
    }

    fn change(self, change: impl FnOnce(&mut Wqe)) -> Self {
        if let Some((_, head)) = self.writer.current() {
            change(head);
        }
        self
    }
}

/// Kinds that a send queue takes.
mod sealed {
    pub trait Sends {}
    impl Sends for super::op::Send {}
    impl Sends for super::op::Write {}
    impl Sends for super::op::Read {}
    impl Sends for super::op::Atomic {}
    impl Sends for super::op::Placement {}
    impl Sends for super::op::Bind {}
    impl Sends for super::op::LocalInvalidate {}
}

#[allow(private_bounds)]
impl<K: sealed::Sends> Wr<'_, '_, K> {
    /// Asks for a completion on success too.
    pub fn signaled(self) -> Self {
        self.change(|head| head.flags |= wqe_flags::SIGNALED)
    }

    /// Over XRC: the number of the SRQ at the peer that it is for. A SEND takes a receive of it; keys are those of its
    /// protection domain. Every work request of an XRC initiator names one.
    pub fn to_srq(self, remote_srqn: u32) -> Self {
        self.writer.address(remote_srqn);
        self
    }

    /// Makes it wait for the READs and atomics before it.
    pub fn fence(self) -> Self {
        self.change(|head| head.flags |= wqe_flags::FENCE)
    }
}

impl Wr<'_, '_, op::Send> {
    /// Sends immediate data along, in host order.
    pub fn imm(self, imm: u32) -> Self {
        self.change(|head| (head.opcode, head.imm_or_rkey) = (opcode::SEND_WITH_IMM, imm))
    }

    /// Invalidates a key of the peer's after delivery, instead of immediate data. The peer's region must permit
    /// it ([`Access::INVALIDATE`](crate::Access::INVALIDATE)) and be of its QP's PD.
    pub fn invalidate(self, rkey: u32) -> Self {
        self.change(|head| (head.opcode, head.imm_or_rkey) = (opcode::SEND_WITH_INV, rkey))
    }

    /// Wakes a peer that waits for solicited completions.
    pub fn solicited(self) -> Self {
        self.change(|head| head.flags |= wqe_flags::SOLICITED)
    }
}

impl Wr<'_, '_, op::Write> {
    /// Tells the peer by immediate data, in host order, which takes one of its receives.
    pub fn imm(self, imm: u32) -> Self {
        self.change(|head| (head.opcode, head.imm_or_rkey) = (opcode::WRITE_WITH_IMM, imm))
    }

    /// Wakes a peer that waits for solicited completions; means something with [`Wr::imm`] only.
    pub fn solicited(self) -> Self {
        self.change(|head| head.flags |= wqe_flags::SOLICITED)
    }
}
