//! What memory, receive buffers and completions must be, worked out from the frames that were accepted.

use crate::common::{BASE, KEY};
use crate::siege::{READ_ONLY, REGION, SMALL_REGION};
use rnic_sim::{GRH_BYTE, Node, QKEY};
use rnic_transport::{Access, Bind, Completion, GRH_AREA, QpType, Queue, WcOpcode, WcStatus};
use rnic_wire::{Headers, Operation, Reth};

/// Kept beside the QP.
pub struct Model {
    /// The region that the peer may write.
    pub region: Vec<u8>,
    /// What the window is bound to now.
    pub window: Option<Bind>,
    /// Where the next payload of the WRITE under way goes, how much of it has come, and how much is to come in all.
    cursor: usize,
    written: usize,
    announced: usize,
    /// What has come of the SEND under way.
    message: Vec<u8>,
    /// Completions looked at.
    seen: usize,
    /// The work request of either queue that completes next.
    next: [u64; 2],
    /// One of that queue has failed: none succeeds any more.
    failed: [bool; 2],
    /// Receives completed with success.
    pub received: u64,
}

impl Model {
    pub fn new(region: Vec<u8>) -> Self {
        Model {
            region,
            window: None,
            cursor: 0,
            written: 0,
            announced: 0,
            message: Vec::new(),
            seen: 0,
            next: [0; 2],
            failed: [false; 2],
            received: 0,
        }
    }

    /// A request took effect.
    pub fn accept(&mut self, headers: &Headers, payload: &[u8]) {
        let opcode = headers.bth.opcode;
        let qkey = headers.deth.map(|deth| deth.qkey);
        assert!(qkey.is_none_or(|qkey| qkey == QKEY), "{headers:?} was accepted");
        if opcode.is_send() {
            if opcode.starts_message() {
                self.message.clear();
            }
            self.message.extend(payload);
        } else if opcode.is_write() {
            if let Some(reth) = headers.reth {
                let writable = [(KEY, BASE, REGION), self.window(Access::REMOTE_WRITE)];
                assert!(permitted(&reth, &writable), "{reth:?} was accepted");
                self.cursor = reth.va.wrapping_sub(BASE) as usize;
                self.announced = reth.dma_len as usize;
                self.written = 0;
            }
            if !payload.is_empty() {
                self.region[self.cursor..self.cursor + payload.len()].copy_from_slice(payload);
            }
            self.cursor = self.cursor.wrapping_add(payload.len());
            self.written += payload.len();
            let whole = self.written == self.announced;
            assert!(
                whole == opcode.ends_message() && self.written <= self.announced,
                "{headers:?}"
            );
        } else if opcode.operation == Operation::ReadRequest {
            let readable = [
                (KEY, BASE, REGION),
                (READ_ONLY.0, READ_ONLY.1, SMALL_REGION),
                self.window(Access::REMOTE_READ),
            ];
            let reth = headers.reth.expect("a READ has a RETH");
            assert!(permitted(&reth, &readable), "{reth:?} was accepted");
        } else if opcode.operation == Operation::AtomicWrite {
            let reth = headers.reth.expect("an ATOMIC WRITE has a RETH");
            let writable = [(KEY, BASE, REGION), self.window(Access::REMOTE_WRITE)];
            let lawful = reth.dma_len == 8 && reth.va.is_multiple_of(8) && permitted(&reth, &writable);
            assert!(lawful, "{reth:?} was accepted");
            let at = (reth.va - BASE) as usize;
            self.region[at..at + 8].copy_from_slice(payload);
        } else if opcode.operation == Operation::Flush {
            let feth = headers.feth.expect("a FLUSH has a FETH");
            assert!(
                (feth.placement, feth.selectivity) <= (1, 1),
                "{feth:?} was accepted"
            );
            let reth = headers.reth.expect("and a RETH");
            let known = [(KEY, BASE, REGION), self.window(Access::FLUSH_GLOBAL)];
            assert!(
                feth.selectivity == 1 || permitted(&reth, &known),
                "{reth:?} was accepted"
            );
        } else if let Some(atomic) = headers.atomic {
            let at = (atomic.va - BASE) as usize;
            let word = &mut self.region[at..at + 8];
            let before = u64::from_ne_bytes((&*word).try_into().expect("8 bytes"));
            let after = match opcode.operation {
                Operation::FetchAdd => before.wrapping_add(atomic.swap_or_add),
                _ if before == atomic.compare => atomic.swap_or_add,
                _ => before,
            };
            word.copy_from_slice(&after.to_ne_bytes());
        }
    }

    /// Part of a WRITE was placed before its turn. It is checked, and placed again, when that comes.
    pub fn place(&mut self, addr: u64, payload: &[u8]) {
        let at = addr.wrapping_sub(BASE) as usize;
        self.region[at..at + payload.len()].copy_from_slice(payload);
    }

    /// The window, if it grants a right; nothing otherwise.
    fn window(&self, right: Access) -> (u32, u64, u64) {
        let bound = self.window.filter(|bind| bind.access.contains(right));
        bound.map_or((0, 0, 0), |bind| (bind.key, bind.addr, bind.len))
    }

    /// Looks at completions that are new.
    pub fn check_completions(&mut self, node: &Node) {
        while let Some(completion) = node.host.completions.get(self.seen) {
            self.seen += 1;
            let queue = completion.queue as usize;
            assert_eq!(completion.wr_id, self.next[queue], "{completion:?}");
            self.next[queue] += 1;
            match completion.status {
                WcStatus::Success => {
                    assert!(!self.failed[queue], "{completion:?} after an error");
                    match completion.queue {
                        Queue::Recv => self.check_receive(node, completion),
                        Queue::Send => check_send(node, completion),
                    }
                }
                // One reason, and then flushes.
                status => {
                    let again = self.failed[queue] && status != WcStatus::WrFlushErr;
                    assert!(!again, "{completion:?} after an error");
                    self.failed[queue] = true;
                }
            }
        }
    }

    fn check_receive(&mut self, node: &Node, completion: &Completion) {
        self.received += 1;
        if completion.opcode == WcOpcode::RecvRdmaWithImm {
            assert_eq!(completion.byte_len as usize, self.written, "{completion:?}");
            return;
        }
        let qp_type = node.qp.qp_type();
        let grh = if qp_type == QpType::Ud { GRH_AREA } else { 0 };
        let buffer = &node.host.recv_bufs[completion.wr_id as usize];
        let end = completion.byte_len as usize;
        assert_eq!(end, grh + self.message.len(), "{completion:?}");
        assert!(
            buffer[..grh].iter().all(|byte| *byte == GRH_BYTE),
            "no GRH area: {completion:?}"
        );
        assert_eq!(buffer[grh..end], self.message, "{completion:?}");
        // A UC message that was given up may have been longer.
        let clean = qp_type == QpType::Uc || buffer[end..].iter().all(|byte| *byte == 0);
        assert!(clean, "written beyond its end: {completion:?}");
    }

    /// The send queue, or a new QP, begins anew.
    pub fn revive(&mut self, queues: &[Queue]) {
        for queue in queues {
            self.failed[*queue as usize] = false;
        }
    }

    /// Work requests of a queue that are completed.
    pub fn completed(&self, queue: Queue) -> u64 {
        self.next[queue as usize]
    }
}

/// Whether all of what is asked for lies in one of the regions: key, address and bytes.
fn permitted(reth: &Reth, regions: &[(u32, u64, u64)]) -> bool {
    let len = u64::from(reth.dma_len);
    let inside = |(key, base, size): &(u32, u64, u64)| {
        let end = reth.va.checked_add(len);
        *key == reth.rkey && reth.va >= *base && end.is_some_and(|end| end <= base + size)
    };
    len == 0 || regions.iter().any(inside)
}

/// Every byte of an answer was placed, and none twice.
fn check_send(node: &Node, completion: &Completion) {
    let answers = matches!(
        completion.opcode,
        WcOpcode::RdmaRead | WcOpcode::CompSwap | WcOpcode::FetchAdd
    );
    if answers {
        let placed = node.host.scattered[completion.wr_id as usize];
        assert_eq!(placed, completion.byte_len, "{completion:?}");
    }
}
