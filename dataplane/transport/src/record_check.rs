//! Whether the values of a QP's record go together: what every other function here takes for granted.

use crate::atomic::ATOMIC_LEN;
use crate::attr::{Attrs, MAX_RD_ATOMIC};
use crate::cold::Cold;
use crate::qp::{Limits, MAX_MESSAGE, MAX_WINDOW, RcQp};
use crate::record::BadField;
use crate::requester::Requester;
use crate::responder::{Answer, Responder};
use crate::types::{Access, QpState, QpType, Time};
use crate::work::{SendFlags, SendWr, WrOpcode};
use rnic_wire::{MessageKind, Mtu, Psn};

type Checked = Result<(), BadField>;

const BITS_24: u32 = Psn::MAX.get();

fn psn(field: &'static str, psn: Psn) -> Checked {
    BadField::unless(psn.get() <= BITS_24, field, psn.get(), "24 bits")
}

impl RcQp {
    /// Checks a record that was read back, with the send ring (as [`crate::Ctx::sq`]) and the [`Cold`] that belong to it.
    ///
    /// A QP that passes can be driven on: no call panics, overflows or loops without bound. It passes at any
    /// moment between two calls of a QP that was never anywhere else.
    ///
    /// # Errors
    /// The first field that contradicts the others, and what it would have to be.
    pub fn check(&self, ring: &[SendWr], cold: &Cold) -> Result<(), BadField> {
        let sized = ring.len().is_power_of_two() && ring.len() <= 1 << 31;
        BadField::unless(sized, "ring length", ring.len() as u64, "a power of two")?;
        #[cfg(not(feature = "mutations"))]
        BadField::unless(self.mutation == 0, "mutation", self.mutation, "0")?;
        #[cfg(feature = "mutations")]
        if self.mutation != 0 {
            // A QP with a deliberate fault may well be in a state that no other is ever in.
            return Ok(());
        }
        for (field, number) in [
            ("qpn", self.qpn),
            ("dest_qpn", self.dest_qpn),
            ("resp.srqn", self.resp.srqn),
        ] {
            BadField::unless(number <= BITS_24, field, number, "24 bits")?;
        }
        let idle = self.qp_type.has_send_queue() || self.req.head == self.req.tail;
        BadField::unless(idle, "req.tail", self.req.tail, "at head on an XRC target")?;
        self.attrs.check()?;
        self.limits.check()?;
        self.check_unreliable()?;
        self.flow.check(self.pace, self.qp_type)?;
        let selective = self.attrs.selective;
        let may = !selective || self.qp_type == QpType::Rc;
        BadField::unless(may, "attrs.selective", selective, "set on RC alone")?;
        if self.state.receives() {
            self.resp.early.check(&cold.early, selective, self.resp.message)?;
        }
        if self.state.sends() {
            self.req
                .resend
                .check(&cold.arrived, selective, self.req.una, self.req.max)?;
        }
        self.resp.check(self.state, self.attrs.mtu, cold)?;
        self.req.check(self.state, &self.attrs, ring)
    }
}

impl Limits {
    fn check(&self) -> Checked {
        let Limits {
            max_unacked,
            ack_every_log2,
        } = *self;
        let good = (1..=MAX_WINDOW).contains(&max_unacked);
        BadField::unless(good, "limits.max_unacked", max_unacked, "1 to 2^23 - 1")?;
        BadField::unless(
            ack_every_log2 <= 22,
            "limits.ack_every_log2",
            ack_every_log2,
            "at most 22",
        )
    }
}

impl Attrs {
    fn check(&self) -> Checked {
        let small = [
            ("attrs.timeout", self.timeout.code(), 31),
            ("attrs.min_rnr_timer", self.min_rnr_timer.code(), 31),
            ("attrs.retry_cnt", self.retry_cnt, 7),
            ("attrs.rnr_retry", self.rnr_retry, 7),
            ("attrs.max_rd_atomic", self.max_rd_atomic, MAX_RD_ATOMIC),
            ("attrs.max_dest_rd_atomic", self.max_dest_rd_atomic, MAX_RD_ATOMIC),
        ];
        for (field, value, max) in small {
            BadField::unless(
                value <= max,
                field,
                value,
                "in the range that modify accepts (7, 16 or 31)",
            )?;
        }
        BadField::unless(self.pkey_index == 0, "attrs.pkey_index", self.pkey_index, "0")?;
        let known = Access::from_bits(self.access.bits().into()).is_some();
        BadField::unless(known, "attrs.access", self.access.bits(), "access rights (0x33f)")?;
        psn("attrs.rq_psn", self.rq_psn)?;
        psn("attrs.sq_psn", self.sq_psn)
    }
}

impl Responder {
    fn check(&self, state: QpState, mtu: Mtu, cold: &Cold) -> Checked {
        psn("resp.epsn", self.epsn)?;
        psn("resp.taken", self.taken)?;
        let receiving = self.message == MessageKind::Send && state.receives();
        BadField::unless(
            !receiving || self.has_wqe,
            "resp.has_wqe",
            self.has_wqe,
            "set inside a SEND",
        )?;
        BadField::unless(self.msn <= BITS_24, "resp.msn", self.msn, "24 bits")?;
        if let Answer::Nak { psn: at, .. } = self.answer {
            psn("resp.answer.psn", at)?;
        }
        let Some(jobs) = self.responses.jobs(&cold.jobs) else {
            let len = self.responses.len();
            return BadField::unless(false, "resp.responses.len", len, "at most 16");
        };
        for job in jobs {
            psn("resp.responses.first", job.first)?;
            BadField::unless(
                job.len <= MAX_MESSAGE,
                "resp.responses.len",
                job.len,
                "at most 2^31 bytes",
            )?;
            let whole = job.packets == mtu.packets(job.len) && job.packets <= MAX_WINDOW;
            BadField::unless(
                whole,
                "resp.responses.packets",
                job.packets,
                "the packets of its length",
            )?;
            BadField::unless(
                job.sent < job.packets,
                "resp.responses.sent",
                job.sent,
                "less than packets",
            )?;
            for (field, value) in [("resp.responses.msn", job.msn), ("resp.responses.srqn", job.srqn)] {
                BadField::unless(value <= BITS_24, field, value, "24 bits")?;
            }
            let single = !job.atomic || job.packets == 1;
            BadField::unless(single, "resp.responses.packets", job.packets, "1 of an atomic")?;
        }
        let (len, next) = self.atomics.cursors();
        BadField::unless(len <= MAX_RD_ATOMIC, "resp.atomics.len", len, "at most 16")?;
        BadField::unless(next < MAX_RD_ATOMIC, "resp.atomics.next", next, "below 16")?;
        if len > 0 {
            for at in &cold.psns {
                psn("resp.atomics.psns", *at)?;
            }
        }
        Ok(())
    }
}

impl Requester {
    fn check(&self, state: QpState, attrs: &Attrs, ring: &[SendWr]) -> Checked {
        for (field, at) in [
            ("req.una", self.una),
            ("req.next", self.next),
            ("req.max", self.max),
        ] {
            psn(field, at)?;
        }
        psn("req.resumed", self.resumed)?;
        self.credit.check()?;
        let tail = self.ahead(self.tail);
        BadField::unless(
            tail as usize <= ring.len(),
            "req.tail",
            self.tail,
            "at most the ring's length beyond head",
        )?;
        let waits = !self.rnr_wait || self.rnr_deadline != Time::NEVER;
        BadField::unless(
            waits,
            "req.rnr_deadline",
            self.rnr_deadline.0,
            "set while rnr_wait is",
        )?;
        for i in 0..tail {
            at(ring, self.head.wrapping_add(i)).check(attrs.mtu)?;
        }
        // Elsewhere the cursors mean nothing: ERR moves the head alone, and before RTS there is nothing.
        if state.sends() {
            self.check_cursors(attrs, ring)
        } else {
            Ok(())
        }
    }

    fn check_cursors(&self, attrs: &Attrs, ring: &[SendWr]) -> Checked {
        let (cur, fresh, tail) = (
            self.ahead(self.cur),
            self.ahead(self.fresh),
            self.ahead(self.tail),
        );
        BadField::unless(fresh <= tail, "req.fresh", self.fresh, "from head to tail")?;
        BadField::unless(cur <= fresh, "req.cur", self.cur, "from head to fresh")?;
        let failed = !self.failed || self.ahead(self.failed_at) < tail;
        BadField::unless(failed, "req.failed_at", self.failed_at, "from head to tail")?;
        let alone = cur == 0 && fresh == 0 && tail > 0 && at(ring, self.head).is_local();
        BadField::unless(
            !self.local_begun || alone,
            "req.local_begun",
            self.local_begun,
            "set only while a LOCAL_INV or BIND_MW is the oldest request",
        )?;
        let few = self.rd_atomics <= attrs.max_rd_atomic;
        BadField::unless(few, "req.rd_atomics", self.rd_atomics, "at most max_rd_atomic")?;
        // What was started lies in PSN order without gaps, from the oldest unacknowledged to the last ever sent.
        let mut end = None;
        for i in 0..fresh {
            let wr = at(ring, self.head.wrapping_add(i));
            let last = wr.first + (attrs.mtu.packets(wr.length) - 1);
            BadField::unless(
                wr.last == last,
                "sq.last",
                wr.last.get(),
                "the PSN of the last packet",
            )?;
            let follows = end.is_none_or(|end| end == wr.first);
            BadField::unless(
                follows,
                "sq.first",
                wr.first.get(),
                "one past the request before it",
            )?;
            end = Some(last.next());
        }
        let window = self.max.diff(self.una);
        BadField::unless(window >= 0, "req.max", self.max.get(), "not before una")?;
        let next = (0..=window).contains(&self.next.diff(self.una));
        BadField::unless(next, "req.next", self.next.get(), "from una to max")?;
        if let Some(end) = end {
            let oldest = at(ring, self.head);
            BadField::unless(
                oldest.has(self.una),
                "req.una",
                self.una.get(),
                "within the oldest request",
            )?;
            BadField::unless(
                !self.max.is_after(end),
                "req.max",
                self.max.get(),
                "within what was started",
            )?;
        }
        let sent = match self.cur == self.fresh {
            true => end.is_none_or(|end| end == self.next),
            false => at(ring, self.cur).has(self.next),
        };
        BadField::unless(sent, "req.next", self.next.get(), "within the request at cur")
    }
}

fn at(ring: &[SendWr], index: u32) -> &SendWr {
    &ring[index as usize & (ring.len() - 1)]
}

impl SendWr {
    /// Whether one of its packets has this PSN.
    fn has(&self, psn: Psn) -> bool {
        !psn.is_before(self.first) && !psn.is_after(self.last)
    }

    fn check(&self, mtu: Mtu) -> Checked {
        psn("sq.first", self.first)?;
        let srqn = self.remote_srqn;
        BadField::unless(srqn <= BITS_24, "sq.remote_srqn", srqn, "24 bits")?;
        psn("sq.last", self.last)?;
        BadField::unless(
            self.length <= MAX_MESSAGE,
            "sq.length",
            self.length,
            "at most 2^31 bytes",
        )?;
        let flags = SendFlags::from_bits(self.flags.bits().into()).is_some();
        BadField::unless(flags, "sq.flags", self.flags.bits(), "send flags (0xf)")?;
        let atomic = self.is_atomic() || self.opcode == WrOpcode::AtomicWrite;
        BadField::unless(
            !atomic || self.length == ATOMIC_LEN,
            "sq.length",
            self.length,
            "8 bytes of an atomic",
        )?;
        let flushes = self.opcode != WrOpcode::Flush || self.length == 0 && self.flush_eth().is_some();
        BadField::unless(flushes, "sq.swap", self.swap, "a FETH, of a FLUSH without data")?;
        let fits = !self.is_read() || mtu.packets(self.length) <= MAX_WINDOW;
        BadField::unless(
            fits,
            "sq.length",
            self.length,
            "at most half the PSN space of a READ",
        )
    }
}
