//! A host made of vectors, which writes down everything it is made to do.

use rnic_transport::{
    Access, AtomicOp, Bind, Cause, Check, Completion, CompletionFlags, CqFull, Event, Flush, Host, KeyError,
    Queue, RecvError, RecvWqe, SendWr, WcOpcode, WcStatus,
};
use std::collections::VecDeque;

/// A registered memory region.
#[derive(Clone, Debug)]
pub struct Region {
    /// Its key.
    pub rkey: u32,
    /// Address of its first byte.
    pub base: u64,
    /// Its contents.
    pub bytes: Vec<u8>,
    /// What the peer may do.
    pub access: Access,
    /// Cleared by invalidation.
    pub valid: bool,
}

impl Region {
    fn range(&self, addr: u64, len: u64, access: Access) -> Result<std::ops::Range<usize>, KeyError> {
        if !self.valid {
            return Err(KeyError::Key);
        }
        if !self.access.contains(access) {
            return Err(KeyError::Access);
        }
        let start = addr.checked_sub(self.base).ok_or(KeyError::Range)?;
        let end = start.checked_add(len).ok_or(KeyError::Range)?;
        if end > self.bytes.len() as u64 {
            return Err(KeyError::Range);
        }
        Ok(start as usize..end as usize)
    }
}

/// A memory window: a key for a part of a region.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Window {
    /// What it was bound to last; `None` while it is not bound.
    pub bound: Option<Bind>,
    /// Its key without the key byte.
    pub number: u32,
}

/// Something the peer made this host do. Adjacent writes of one message are one effect.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // fields as in the calls of `Host`
pub enum Effect {
    Write {
        addr: u64,
        len: u64,
    },
    Atomic {
        addr: u64,
        original: u64,
    },
    AtomicWrite {
        addr: u64,
    },
    Flush {
        addr: u64,
        len: u32,
        whole: bool,
    },
    Receive {
        wr_id: u64,
        offset: u32,
        len: u32,
    },
    Invalidate {
        rkey: u32,
    },
    Bind {
        rkey: u32,
    },
    Received {
        wr_id: u64,
        opcode: WcOpcode,
        byte_len: u32,
        flags: u8,
        value: u32,
    },
}

/// An XRC SRQ.
#[derive(Clone, Debug)]
pub struct SimSrq {
    /// Its number.
    pub number: u32,
    /// Its XRC domain.
    pub xrcd: u32,
    /// Receive WQEs not taken yet.
    pub queue: VecDeque<RecvWqe>,
}

/// The surroundings of one QP.
#[derive(Default, Debug)]
pub struct SimHost {
    /// Registered memory.
    pub regions: Vec<Region>,
    /// Memory windows.
    pub windows: Vec<Window>,
    /// Receive WQEs not taken yet; `data` indexes `recv_bufs`.
    pub recv_queue: VecDeque<RecvWqe>,
    /// XRC SRQs.
    pub srqs: Vec<SimSrq>,
    /// The XRC SRQ named last.
    named: Option<usize>,
    /// Number of the XRC SRQ that each completion went to, 0 where there was none.
    pub completed_to: Vec<u32>,
    /// Buffers of receive WQEs.
    pub recv_bufs: Vec<Vec<u8>>,
    /// Buffers of send WQEs: gathered by SEND and WRITE, filled by READ and atomics; `SendWr::data` indexes them.
    pub send_bufs: Vec<Vec<u8>>,
    /// Bytes that responses placed, per send buffer: each must be placed once.
    pub scattered: Vec<u32>,
    /// Tokens of send buffers that cannot be accessed.
    pub bad_send: Vec<u32>,
    /// Tokens of receive buffers that cannot be accessed.
    pub bad_recv: Vec<u32>,
    /// Address handles that are not valid.
    pub bad_ahs: Vec<u32>,
    /// The receive ring's indices are forged.
    pub forged_recv: bool,
    /// Completions in order.
    pub completions: Vec<Completion>,
    /// Completions that fit; 0 for no limit.
    pub cq_capacity: usize,
    /// Events in order.
    pub events: Vec<Event>,
    /// After an invalidation, how often a QP that asks is told no (and one time yes).
    pub grace: u32,
    in_use: u32,
    /// An invalidation or a bind completed while that went on.
    pub too_soon: bool,
    /// What the peer made happen, in order.
    pub effects: Vec<Effect>,
    /// Address and length of what was placed last of a WRITE.
    pub placed: Option<(u64, u64)>,
    /// Keys that the owner's own requests invalidate, and no one else.
    pub own_keys: Vec<u32>,
    /// What the owner's own requests did: those invalidations, and binds.
    pub own_effects: Vec<Effect>,
}

impl SimHost {
    /// Registers memory.
    pub fn register(&mut self, rkey: u32, base: u64, bytes: Vec<u8>, access: Access) {
        self.regions.push(Region {
            rkey,
            base,
            bytes,
            access,
            valid: true,
        });
    }

    /// The region of a key.
    pub fn region(&self, rkey: u32) -> Option<&Region> {
        self.regions.iter().find(|region| region.rkey == rkey)
    }

    /// Makes a memory window that is not bound.
    pub fn alloc_window(&mut self, number: u32) {
        self.windows.push(Window { bound: None, number });
    }

    /// The region that a key stands for, and where in it a range lies. A window's region must be valid, too.
    fn locate(
        &self,
        rkey: u32,
        addr: u64,
        len: u64,
        access: Access,
    ) -> Result<(u32, std::ops::Range<usize>), KeyError> {
        let Some(window) = self.bound(rkey) else {
            let region = self.region(rkey).ok_or(KeyError::Key)?;
            return Ok((rkey, region.range(addr, len, access)?));
        };
        if !window.access.contains(access) {
            return Err(KeyError::Access);
        }
        let offset = addr.checked_sub(window.addr).ok_or(KeyError::Range)?;
        if offset.checked_add(len).is_none_or(|end| end > window.len) {
            return Err(KeyError::Range);
        }
        let region = self.region(window.region).ok_or(KeyError::Key)?;
        Ok((window.region, region.range(addr, len, Access::NONE)?))
    }

    /// What a window with this key is bound to.
    pub fn bound(&self, rkey: u32) -> Option<&Bind> {
        let bound = self.windows.iter().filter_map(|window| window.bound.as_ref());
        bound.into_iter().find(|bind| bind.key == rkey)
    }

    /// The region of a key, to change it.
    pub fn region_mut(&mut self, rkey: u32) -> Option<&mut Region> {
        self.regions.iter_mut().find(|region| region.rkey == rkey)
    }

    /// Posts a receive WQE of `capacity` bytes.
    pub fn post_recv(&mut self, wr_id: u64, capacity: u32) {
        let wqe = self.recv_wqe(wr_id, capacity);
        self.recv_queue.push_back(wqe);
    }

    /// Makes an XRC SRQ.
    pub fn add_srq(&mut self, number: u32, xrcd: u32) {
        let queue = VecDeque::new();
        self.srqs.push(SimSrq { number, xrcd, queue });
    }

    /// Posts a receive WQE to an XRC SRQ.
    ///
    /// # Panics
    /// When there is none of that number.
    pub fn post_srq_recv(&mut self, srqn: u32, wr_id: u64, capacity: u32) {
        let wqe = self.recv_wqe(wr_id, capacity);
        let srq = self.srqs.iter_mut().find(|srq| srq.number == srqn);
        srq.expect("it was added").queue.push_back(wqe);
    }

    fn recv_wqe(&mut self, wr_id: u64, capacity: u32) -> RecvWqe {
        let data = self.recv_bufs.len() as u32;
        self.recv_bufs.push(vec![0; capacity as usize]);
        RecvWqe {
            wr_id,
            capacity,
            data,
        }
    }

    /// Adds a send buffer and returns its token.
    pub fn add_send_buf(&mut self, bytes: Vec<u8>) -> u32 {
        self.send_bufs.push(bytes);
        self.scattered.push(0);
        self.send_bufs.len() as u32 - 1
    }

    /// Status of every completion of one queue, in order.
    pub fn statuses(&self, queue: Queue) -> Vec<(u64, WcStatus)> {
        self.completions
            .iter()
            .filter(|c| c.queue == queue)
            .map(|c| (c.wr_id, c.status))
            .collect()
    }

    /// Notes that part of a WRITE was placed.
    pub(crate) fn wrote(&mut self, addr: u64, len: u64) {
        match self.effects.last_mut() {
            Some(Effect::Write { addr: at, len: sum }) if at.wrapping_add(*sum) == addr => *sum += len,
            _ => self.effects.push(Effect::Write { addr, len }),
        }
    }

    /// Bytes of a region, for a READ response.
    pub fn read_remote(&self, rkey: u32, addr: u64, len: u32) -> Result<Vec<u8>, KeyError> {
        let (region, range) = self.locate(rkey, addr, u64::from(len), Access::REMOTE_READ)?;
        let region = self.region(region).ok_or(KeyError::Key)?;
        Ok(region.bytes[range].to_vec())
    }

    /// Whether an invalidated key is still in use.
    pub fn waits(&self) -> bool {
        self.in_use > 0
    }

    /// Takes the last send buffer away again: nobody was told of it.
    pub fn take_send_buf(&mut self) {
        self.send_bufs.pop();
        self.scattered.pop();
        let count = self.send_bufs.len() as u32;
        self.bad_send.retain(|data| *data < count);
    }

    /// Bytes of a send buffer.
    pub fn gather(&self, data: u32, offset: u32, len: u32) -> Result<Vec<u8>, KeyError> {
        if self.bad_send.contains(&data) {
            return Err(KeyError::Key);
        }
        let start = offset as usize;
        let bytes = self.send_bufs[data as usize].get(start..start + len as usize);
        bytes.map(<[u8]>::to_vec).ok_or(KeyError::Range)
    }
}

/// What an atomic leaves where it found `original`.
pub(crate) fn apply(op: AtomicOp, original: u64) -> u64 {
    match op {
        AtomicOp::CompareSwap { compare, swap } if compare == original => swap,
        AtomicOp::CompareSwap { .. } => original,
        AtomicOp::FetchAdd { add } => original.wrapping_add(add),
    }
}

impl SimHost {
    fn has_cq_room(&self) -> bool {
        self.cq_capacity == 0 || self.completions.len() < self.cq_capacity
    }
}

impl Host for SimHost {
    type Payload<'a> = &'a [u8];

    fn check_remote(&mut self, rkey: u32, addr: u64, len: u64, access: Access) -> Result<(), KeyError> {
        assert_ne!(len, 0, "the key of a zero-length operation was checked");
        self.locate(rkey, addr, len, access).map(drop)
    }

    fn write_remote(&mut self, rkey: u32, addr: u64, payload: &[u8]) -> Result<(), KeyError> {
        assert!(!payload.is_empty(), "an empty payload was written");
        let len = payload.len() as u64;
        let (region, range) = self.locate(rkey, addr, len, Access::REMOTE_WRITE)?;
        let region = self.region_mut(region).ok_or(KeyError::Key)?;
        region.bytes[range].copy_from_slice(payload);
        self.placed = Some((addr, len));
        self.wrote(addr, len);
        Ok(())
    }

    fn atomic(&mut self, rkey: u32, addr: u64, op: AtomicOp) -> Result<u64, KeyError> {
        assert_eq!(addr % 8, 0, "an atomic on an unaligned address");
        let (region, range) = self.locate(rkey, addr, 8, Access::REMOTE_ATOMIC)?;
        let region = self.region_mut(region).ok_or(KeyError::Key)?;
        let word = &mut region.bytes[range];
        let original = u64::from_ne_bytes((*word).try_into().expect("8 bytes"));
        word.copy_from_slice(&apply(op, original).to_ne_bytes());
        self.effects.push(Effect::Atomic { addr, original });
        Ok(original)
    }

    fn xrc_srq(&mut self, srqn: u32) -> Option<u32> {
        self.named = self.srqs.iter().position(|srq| srq.number == srqn);
        self.named.map(|at| self.srqs[at].xrcd)
    }

    fn atomic_write(&mut self, rkey: u32, addr: u64, payload: &[u8]) -> Result<(), KeyError> {
        assert_eq!(
            (addr % 8, payload.len()),
            (0, 8),
            "an ATOMIC WRITE of another kind"
        );
        let (region, range) = self.locate(rkey, addr, 8, Access::REMOTE_WRITE)?;
        let region = self.region_mut(region).ok_or(KeyError::Key)?;
        region.bytes[range].copy_from_slice(payload);
        self.effects.push(Effect::AtomicWrite { addr });
        Ok(())
    }

    fn flush(&mut self, rkey: u32, addr: u64, len: u32, flush: Flush) -> Result<(), KeyError> {
        let Flush { placement, whole } = flush;
        let (addr, len) = if whole { (0, 0) } else { (addr, len) };
        match whole {
            true => {
                let known = self
                    .region(rkey)
                    .filter(|region| region.valid)
                    .ok_or(KeyError::Key)?;
                if !known.access.contains(placement) {
                    return Err(KeyError::Access);
                }
            }
            false => self.locate(rkey, addr, u64::from(len), placement).map(drop)?,
        }
        self.effects.push(Effect::Flush { addr, len, whole });
        Ok(())
    }

    fn take_recv(&mut self) -> Result<Option<RecvWqe>, RecvError> {
        if self.forged_recv {
            return Err(RecvError { wr_id: None });
        }
        Ok(match self.named {
            Some(at) => self.srqs[at].queue.pop_front(),
            None => self.recv_queue.pop_front(),
        })
    }

    fn receive_message(&mut self, payload: &[u8], solicited: bool, src_qpn: u32) -> bool {
        let usual = !self.forged_recv && self.named.is_none() && self.has_cq_room();
        let next = self.recv_queue.front().filter(|_| usual).copied();
        let fits =
            |wqe: &RecvWqe| payload.len() <= wqe.capacity as usize && !self.bad_recv.contains(&wqe.data);
        let Some(wqe) = next.filter(fits) else {
            return false;
        };
        self.recv_queue.pop_front();
        if !payload.is_empty() {
            self.scatter_recv(&wqe, 0, payload)
                .expect("the buffer was looked at");
        }
        let flags = if solicited {
            CompletionFlags::SOLICITED
        } else {
            CompletionFlags::NONE
        };
        let completion = Completion {
            wr_id: wqe.wr_id,
            status: WcStatus::Success,
            opcode: WcOpcode::Recv,
            queue: Queue::Recv,
            flags,
            src_qpn,
            byte_len: payload.len() as u32,
            imm_or_rkey: 0,
            cause: Cause::of(Check::None),
        };
        self.complete(&completion).is_ok()
    }

    fn scatter_recv(&mut self, wqe: &RecvWqe, offset: u32, payload: &[u8]) -> Result<(), KeyError> {
        if self.bad_recv.contains(&wqe.data) {
            return Err(KeyError::Key);
        }
        let start = offset as usize;
        let buffer = self.recv_bufs.get_mut(wqe.data as usize).ok_or(KeyError::Key)?;
        let target = buffer
            .get_mut(start..start + payload.len())
            .ok_or(KeyError::Range)?;
        target.copy_from_slice(payload);
        let len = payload.len() as u32;
        match self.effects.last_mut() {
            Some(Effect::Receive {
                wr_id,
                offset: at,
                len: sum,
            }) if *wr_id == wqe.wr_id && *at + *sum == offset => {
                *sum += len;
            }
            _ => self.effects.push(Effect::Receive {
                wr_id: wqe.wr_id,
                offset,
                len,
            }),
        }
        Ok(())
    }

    fn scatter_send(&mut self, wr: &SendWr, offset: u32, payload: &[u8]) -> Result<(), KeyError> {
        if self.bad_send.contains(&wr.data) {
            return Err(KeyError::Key);
        }
        let start = offset as usize;
        let buffer = self.send_bufs.get_mut(wr.data as usize).ok_or(KeyError::Key)?;
        let target = buffer
            .get_mut(start..start + payload.len())
            .ok_or(KeyError::Range)?;
        target.copy_from_slice(payload);
        self.scattered[wr.data as usize] += payload.len() as u32;
        Ok(())
    }

    fn scatter_atomic(&mut self, wr: &SendWr, original: u64) -> Result<(), KeyError> {
        self.scatter_send(wr, 0, &original.to_ne_bytes())
    }

    fn invalidate(&mut self, rkey: u32) -> Result<(), KeyError> {
        let of_key = |bound: &Bind| bound.key == rkey;
        let window = self
            .windows
            .iter_mut()
            .find(|window| window.bound.as_ref().is_some_and(of_key));
        match window {
            Some(window) => window.bound = None,
            None => {
                let region = self.region_mut(rkey).ok_or(KeyError::Key)?;
                if !std::mem::replace(&mut region.valid, false) {
                    return Err(KeyError::Key);
                }
            }
        }
        let own = self.own_keys.contains(&rkey);
        let effects = if own {
            &mut self.own_effects
        } else {
            &mut self.effects
        };
        effects.push(Effect::Invalidate { rkey });
        self.in_use = self.grace;
        Ok(())
    }

    fn invalidated(&mut self) -> bool {
        self.in_use = self.in_use.saturating_sub(1);
        self.in_use == 0
    }

    fn bind(&mut self, bind: &Bind, begin: bool) -> Result<bool, KeyError> {
        let region = self.region(bind.region).ok_or(KeyError::Key)?;
        if !region.access.contains(Access::MW_BIND) {
            return Err(KeyError::Access);
        }
        region.range(bind.addr, bind.len, Access::NONE)?;
        let numbered = |window: &&mut Window| window.number == bind.key >> 8;
        let window = self.windows.iter_mut().find(numbered).ok_or(KeyError::Key)?;
        if begin {
            window.bound = None;
            self.in_use = self.grace;
        }
        if !self.invalidated() {
            return Ok(false);
        }
        let window = self.windows.iter_mut().find(numbered).ok_or(KeyError::Key)?;
        window.bound = (bind.len > 0).then_some(*bind);
        self.own_effects.push(Effect::Bind { rkey: bind.key });
        Ok(true)
    }

    fn complete(&mut self, completion: &Completion) -> Result<(), CqFull> {
        if !self.has_cq_room() {
            return Err(CqFull);
        }
        if completion.queue == Queue::Recv && completion.status == WcStatus::Success {
            self.effects.push(Effect::Received {
                wr_id: completion.wr_id,
                opcode: completion.opcode,
                byte_len: completion.byte_len,
                flags: completion.flags.bits(),
                value: completion.imm_or_rkey,
            });
        }
        let takes_away = matches!(completion.opcode, WcOpcode::LocalInv | WcOpcode::BindMw)
            || completion.flags.contains(CompletionFlags::WITH_INV);
        self.too_soon |= takes_away && completion.status == WcStatus::Success && self.in_use > 0;
        self.completions.push(*completion);
        let srq = self.named.and_then(|at| self.srqs.get(at));
        self.completed_to.push(srq.map_or(0, |srq| srq.number));
        Ok(())
    }

    fn event(&mut self, event: &Event) {
        self.events.push(*event);
    }
}
