//! The rules on requests.

use crate::checker::Seen;
use crate::report::Report;
use crate::rule::Rule;
use crate::stream::{Read, Request, Sent, Stream};
use rnic_wire::{Mtu, Operation, Psn, Reth, Transport, follows};

impl Request {
    fn of(seen: &Seen<'_>) -> Self {
        let headers = seen.frame.headers();
        Request {
            opcode: headers.bth.opcode,
            reth: headers.reth,
            atomic: headers.atomic,
            imm: headers.imm.or(headers.ieth),
            srqn: headers.xrceth.map(|xrceth| xrceth.srqn),
            len: seen.frame.payload().len(),
        }
    }

    pub fn is_read(&self) -> bool {
        self.opcode.operation == Operation::ReadRequest
    }

    /// FLUSH or ATOMIC WRITE: answered as a READ of no bytes.
    fn is_bare(&self) -> bool {
        matches!(self.opcode.operation, Operation::Flush | Operation::AtomicWrite)
    }

    /// Whether it is answered by itself.
    pub fn is_answered(&self) -> bool {
        self.is_read() || self.is_bare() || self.opcode.is_atomic()
    }
}

impl Stream {
    /// Takes a request; `true` when it shows that the QP has been set up anew.
    pub fn request(&mut self, seen: &Seen<'_>, report: &mut Report) -> bool {
        let psn = seen.frame.bth().psn;
        let (at, anew) = self.unwrap_request(psn);
        let request = Request::of(seen);
        let end = at + self.span(&request);
        self.order(seen, at, end, report);
        self.content(seen, at, end, request, report);
        self.newest = self.newest.max(at);
        self.first = self.first.min(at);
        if end > self.end {
            self.end = end;
            self.move_origin(psn, at);
        }
        if self.loose {
            self.contiguous = self.contiguous.max(at);
        }
        self.advance_contiguous();
        anew
    }

    /// PSNs that a request takes. When nothing tells, one, and gaps say nothing from here on.
    fn span(&mut self, request: &Request) -> i64 {
        match request.reth {
            Some(reth) if request.is_read() => self.path.packets(reth.dma_len).unwrap_or_else(|| {
                self.loose = true;
                1
            }),
            _ => 1,
        }
    }

    /// The order in which a requester sends.
    fn order(&mut self, seen: &Seen<'_>, at: i64, end: i64, report: &mut Report) {
        if !seen.near {
            return;
        }
        if let Some(next) = self.next.filter(|_| !self.loose) {
            if seen.frame.bth().opcode.transport == Transport::Uc {
                report.check(Rule::UcPsn, at == next, &seen.at, || {
                    format!(
                        "PSN {} where {} comes next",
                        psn_of(seen, at, at),
                        psn_of(seen, at, next)
                    )
                });
            } else {
                report.check(Rule::RequestGap, at <= self.end, &seen.at, || {
                    format!("PSNs from {} on were skipped", psn_of(seen, at, self.end))
                });
                // Whatever is acknowledged need not be sent again, so it may be skipped forward as well as back to. Who
                // resends selectively may ask by one packet what is missing, before anybody has told.
                let probed = self.turned && at == self.end;
                let lawful = at == next || at <= self.acked || at > self.end || probed || self.selective;
                report.check(Rule::GoBackN, lawful, &seen.at, || {
                    format!(
                        "after PSN {} comes this, though {} is not acknowledged",
                        psn_of(seen, at, next - 1),
                        psn_of(seen, at, self.acked)
                    )
                });
            }
        }
        self.turned = self.next == Some(self.end) && at < self.end;
        self.next = Some(end);
        if let Some((waits, since, nanos)) = self.rnr
            && waits == at
        {
            let waited = seen.nanos.saturating_sub(since);
            let lawful = waited >= nanos || waited <= seen.crossing;
            report.check(Rule::RnrWait, lawful, &seen.at, || {
                format!("sent {waited} ns after an RNR NAK that asks for {nanos} ns")
            });
        }
    }

    /// What a request carries.
    fn content(&mut self, seen: &Seen<'_>, at: i64, end: i64, request: Request, report: &mut Report) {
        if let Some(known) = self.sent.get(&at) {
            let same = known.request == request;
            let was = known.request;
            report.check(Rule::Retransmission, same, &seen.at, || {
                format!("this PSN was sent before as {was:?}, now as {request:?}")
            });
            return;
        }
        if let Some((start, read)) = self.read_at(at) {
            let expected = left_of(&read, at - start, self.path.mtu.unwrap_or(Mtu::M256));
            let lawful = request.is_read() && request.reth == Some(expected);
            report.check(Rule::ReadResume, lawful, &seen.at, || {
                format!(
                    "this PSN lies in a READ of which {expected:?} is left; it asks for {:?}",
                    request.reth
                )
            });
            self.resumed.insert(at, end);
            return;
        }
        self.sequence(seen, at, end, &request, report);
        self.sizes(seen, &request, report);
        let message = match self.before(at).and_then(|sent| sent.message) {
            _ if request.opcode.starts_message() => Some((at, request.len)),
            Some((start, sum)) => Some((start, sum + request.len)),
            None => None,
        };
        if let Some((start, sum)) = message
            && request.opcode.is_write()
            && let Some(first) = self
                .sent
                .get(&start)
                .map_or(request.reth, |first| first.request.reth)
        {
            let announced = first.dma_len as usize;
            let lawful = if request.opcode.ends_message() {
                sum == announced
            } else {
                sum < announced
            };
            report.check(Rule::Length, lawful, &seen.at, || {
                format!("the WRITE has carried {sum} bytes, its RETH announces {announced}")
            });
        }
        if let Some(reth) = request.reth.filter(|_| request.is_read()) {
            self.reads.insert(at, Read { end, reth });
        }
        if let Some(reth) = request.reth.filter(|_| request.is_bare()) {
            let reth = Reth { dma_len: 0, ..reth };
            self.reads.insert(at, Read { end, reth });
        }
        if request.is_answered() {
            self.answers.pending.insert(at, end);
        }
        self.sent.insert(
            at,
            Sent {
                request,
                end,
                message,
            },
        );
    }

    fn sequence(&self, seen: &Seen<'_>, at: i64, end: i64, request: &Request, report: &mut Report) {
        if let Some(before) = self.before(at) {
            let lawful = follows(Some(before.request.opcode), request.opcode);
            report.check(Rule::OpcodeSequence, lawful.is_ok(), &seen.at, || {
                format!("it follows {}", before.request.opcode)
            });
            let same = request.opcode.starts_message() || before.request.srqn == request.srqn;
            report.check(Rule::XrcSrq, same, &seen.at, || {
                format!("the packet before names {:#x?}", before.request.srqn)
            });
        }
        if let Some(after) = self.sent.get(&end) {
            let lawful = follows(Some(request.opcode), after.request.opcode);
            report.check(Rule::OpcodeSequence, lawful.is_ok(), &seen.at, || {
                format!("{} follows it", after.request.opcode)
            });
        }
    }

    fn sizes(&self, seen: &Seen<'_>, request: &Request, report: &mut Report) {
        let (Some(mtu), opcode, len) = (self.path.mtu, request.opcode, request.len) else {
            return;
        };
        let full = mtu.bytes();
        let lawful = match (opcode.starts_message(), opcode.ends_message()) {
            (_, false) => len == full,
            (true, true) => len <= full,
            (false, true) => 0 < len && len <= full,
        };
        report.check(Rule::Length, lawful, &seen.at, || {
            format!("it carries {len} bytes at a path MTU of {full}")
        });
    }
}

/// What a READ still asks for after `packets` of its response.
pub(crate) fn left_of(read: &Read, packets: i64, mtu: Mtu) -> Reth {
    let offset = packets as u64 * mtu.bytes() as u64;
    Reth {
        va: read.reth.va.wrapping_add(offset),
        rkey: read.reth.rkey,
        dma_len: read.reth.dma_len.saturating_sub(offset as u32),
    }
}

/// The PSN on the wire of unwrapped `other`, seen from the frame at `at`.
pub(crate) fn psn_of(seen: &Seen<'_>, at: i64, other: i64) -> Psn {
    seen.frame.bth().psn + (other - at) as u32
}
