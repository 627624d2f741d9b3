//! The rules on responses.

use crate::checker::Seen;
use crate::report::Report;
use crate::requests::{left_of, psn_of};
use crate::rule::Rule;
use crate::stream::{Sent, Stream};
use rnic_wire::{Mtu, NakCode, Opcode, Operation, Psn, RnrTimer, SELECTIVE_ACK_LEN, SelectiveAck, Syndrome};

impl Stream {
    /// Takes a response to these requests; `true` when it refuses one, which ends the responder's QP.
    pub fn response(&mut self, seen: &Seen<'_>, report: &mut Report) -> bool {
        let headers = seen.frame.headers();
        let opcode = headers.bth.opcode;
        // Responses to what was sent before the capture began say nothing.
        let Some(at) = self.unwrap(headers.bth.psn).filter(|at| *at >= self.first) else {
            return false;
        };
        let syndrome = headers.aeth.map(|aeth| aeth.syndrome);
        if let Some(aeth) = headers.aeth {
            self.msn(seen, at, Psn::new(aeth.msn), report);
        }
        match syndrome {
            Some(Syndrome::Nak(NakCode::PsnSequenceError)) if opcode == Opcode::SELECTIVE_ACK => {
                self.selective_ack(seen, at, report);
                self.acknowledge(at);
            }
            Some(Syndrome::Nak(NakCode::PsnSequenceError)) => {
                self.unseen(seen, at, at <= self.contiguous, report);
                report.check(Rule::NakWithoutGap, at < self.newest, &seen.at, || {
                    format!(
                        "nothing after PSN {} has been sent",
                        psn_of(seen, at, self.newest)
                    )
                });
                self.expects(seen, at, at, report);
                if seen.near {
                    let outstanding = self.answers.nak.replace(at) == Some(at);
                    report.check(Rule::SingleNak, !outstanding, &seen.at, || {
                        "the same NAK is outstanding".into()
                    });
                }
                self.acknowledge(at);
            }
            Some(Syndrome::RnrNak { timer }) => {
                self.unseen(seen, at, at < self.contiguous, report);
                self.expects(seen, at, at, report);
                self.answers.nak = None;
                self.rnr = Some((at, seen.nanos, RnrTimer::new(timer).nanos()));
                self.acknowledge(at);
            }
            Some(Syndrome::Nak(_)) => {
                self.unseen(seen, at, at < self.contiguous, report);
                self.answers.burst = None;
                self.acknowledge(at);
                return true;
            }
            Some(Syndrome::Reserved(_)) => {}
            Some(Syndrome::Ack { .. }) | None => {
                self.unseen(seen, at, at < self.contiguous, report);
                match opcode.operation {
                    Operation::Acknowledge => self.positive(seen, at, report),
                    Operation::AtomicAcknowledge => self.atomic(seen, at, report),
                    _ => self.read_response(seen, at, report),
                }
                self.acknowledge(at + 1);
            }
        }
        false
    }

    /// What is missing, and what has arrived behind it.
    fn selective_ack(&mut self, seen: &Seen<'_>, at: i64, report: &mut Report) {
        self.selective = true;
        self.unseen(seen, at, at <= self.contiguous, report);
        report.check(Rule::NakWithoutGap, at < self.newest, &seen.at, || {
            format!(
                "nothing after PSN {} has been sent",
                psn_of(seen, at, self.newest)
            )
        });
        self.expects(seen, at, at, report);
        let whole: Result<&[u8; SELECTIVE_ACK_LEN], _> = seen.frame.payload().try_into();
        report.check(Rule::Malformed, whole.is_ok(), &seen.at, || {
            format!("a selective ACK of {} bytes", seen.frame.payload().len())
        });
        let Ok(bytes) = whole else { return };
        for number in SelectiveAck::from_bytes(bytes).received.iter() {
            let arrived = at + 1 + i64::from(number);
            self.unseen(seen, arrived, self.sent.contains_key(&arrived), report);
        }
    }

    fn unseen(&self, seen: &Seen<'_>, at: i64, lawful: bool, report: &mut Report) {
        if self.loose {
            return;
        }
        report.check(Rule::AckUnseen, lawful, &seen.at, || {
            let missing = psn_of(seen, at, self.contiguous);
            format!("the request with PSN {missing} has not gone by")
        });
    }

    /// The responder expects PSN `expected` now.
    fn expects(&mut self, seen: &Seen<'_>, at: i64, expected: i64, report: &mut Report) {
        if !seen.near {
            return;
        }
        if let Some(before) = self.answers.expects {
            report.check(Rule::AckMonotony, expected >= before, &seen.at, || {
                format!("before, it expected PSN {}", psn_of(seen, at, before))
            });
        }
        self.answers.expects = self.answers.expects.max(Some(expected));
        let pending = self.answers.pending.first_key_value().map(|(start, _)| *start);
        let lawful = pending.is_none_or(|start| start >= expected);
        report.check(Rule::AckBeforeRead, lawful, &seen.at, || {
            let start = psn_of(seen, at, pending.unwrap_or(at));
            format!("the READ or atomic with PSN {start} has not been answered")
        });
    }

    /// A positive ACK.
    fn positive(&mut self, seen: &Seen<'_>, at: i64, report: &mut Report) {
        if self.is_repeated(at) {
            return;
        }
        self.expects(seen, at, at + 1, report);
        let Some(aeth) = seen.frame.headers().aeth.filter(|_| seen.near && !self.loose) else {
            return;
        };
        let msn = Psn::new(aeth.msn);
        if let Some((counted, before)) = self.answers.counted
            && counted < at
            && self.has_all_before(at + 1)
        {
            let grown = msn.diff(before);
            let messages = self
                .sent
                .range(counted + 1..=at)
                .filter(|(_, sent)| sent.request.opcode.ends_message() && sent.end <= at + 1)
                .count();
            report.check(Rule::Msn, grown as i64 == messages as i64, &seen.at, || {
                format!("the MSN grew by {grown} since the last ACK, over {messages} messages")
            });
        }
        self.answers.counted = Some((at, msn));
    }

    /// Whether an ACK up to `at` repeats what was said before responses to the READs and atomics right behind it: the
    /// answer to a duplicate, which must not speak for those.
    fn is_repeated(&self, at: i64) -> bool {
        let answered = |(start, sent): (&i64, &Sent)| {
            sent.request.is_answered() && !self.answers.pending.contains_key(start)
        };
        let told = self.answers.expects.unwrap_or(at).max(at + 2);
        let mut behind = self.sent.range(at + 1..told).peekable();
        behind.peek().is_some() && behind.all(answered)
    }

    fn msn(&mut self, seen: &Seen<'_>, at: i64, msn: Psn, report: &mut Report) {
        let replay = seen.frame.bth().opcode.operation == Operation::AtomicAcknowledge
            && self.answers.originals.contains_key(&at);
        if !seen.near || replay {
            return;
        }
        if let Some(before) = self.answers.msn {
            report.check(Rule::Msn, !msn.is_before(before), &seen.at, || {
                format!("MSN {} after {}", msn.get(), before.get())
            });
        }
        self.answers.msn = Some(msn);
    }

    fn atomic(&mut self, seen: &Seen<'_>, at: i64, report: &mut Report) {
        if let Some(sent) = self.sent.get(&at) {
            let opcode = sent.request.opcode;
            report.check(Rule::ResponseKind, opcode.is_atomic(), &seen.at, || {
                format!("the request was {opcode}")
            });
        }
        let Some(ack) = seen.frame.headers().atomic_ack else {
            return;
        };
        match self.answers.originals.get(&at) {
            Some(before) => report.check(Rule::AtomicReplay, *before == ack.original, &seen.at, || {
                format!(
                    "the original value was {before:#x}, now it is {:#x}",
                    ack.original
                )
            }),
            None => {
                self.answers.pending.remove(&at);
                self.answers.originals.insert(at, ack.original);
                self.expects(seen, at, at + 1, report);
            }
        }
    }

    fn read_response(&mut self, seen: &Seen<'_>, at: i64, report: &mut Report) {
        let opcode = seen.frame.bth().opcode;
        self.read_sequence(seen, at, report);
        if self.loose {
            return;
        }
        let read = self.read_at(at);
        if at < self.contiguous {
            report.check(Rule::ResponseKind, read.is_some(), &seen.at, || {
                "no READ takes this PSN".into()
            });
        }
        let Some((start, read)) = read else { return };
        let starts = at == start || self.resumed.contains_key(&at);
        let lawful = match (opcode.starts_message(), opcode.ends_message()) {
            (true, last) => starts && last == (at + 1 == read.end),
            (false, last) => at > start && last == (at + 1 == read.end),
        };
        report.check(Rule::ReadResponsePsn, lawful, &seen.at, || {
            let (first, last) = (psn_of(seen, at, start), psn_of(seen, at, read.end - 1));
            format!("the READ takes PSNs {first} to {last}")
        });
        let (len, mtu) = (seen.frame.payload().len(), self.path.mtu.unwrap_or(Mtu::M4096));
        let left = left_of(&read, at - start, mtu).dma_len as usize;
        let expected = left.min(mtu.bytes());
        report.check(Rule::ReadResponseLength, len == expected, &seen.at, || {
            format!("it carries {len} bytes, {expected} are due")
        });
        if at + 1 == read.end {
            self.answers.pending.remove(&start);
        }
    }

    fn read_sequence(&mut self, seen: &Seen<'_>, at: i64, report: &mut Report) {
        let opcode = seen.frame.bth().opcode;
        if !opcode.starts_message() && seen.near {
            let burst = self.answers.burst;
            report.check(
                Rule::ReadResponseSequence,
                burst == Some(at),
                &seen.at,
                || match burst {
                    Some(next) => format!("PSN {} comes next", psn_of(seen, at, next)),
                    None => "no response has been started".into(),
                },
            );
        }
        self.answers.burst = (!opcode.ends_message()).then_some(at + 1);
    }
}
