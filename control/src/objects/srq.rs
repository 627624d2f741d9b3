//! Shared receive queues.

use rnic_abi::{
    CreateSrq, CreateSrqReply, CreateXrcSrq, Handle, HandleArg, MAX_SGE, ModifySrq, QuerySrqReply,
    RingIndices, Wqe, srq_mask, work_queue_size,
};
use rnic_engine::{
    command::Command,
    core::{SrqInit, XrcPart},
    view,
};

use super::{IdKind, Key, Kind, Number, Object, What};
use crate::{
    control::Control,
    dispatch::Outcome,
    ops::Work,
    refusal::{Refusal, Verb},
    region_alloc::Slice,
    session::Reply,
};

/// A shared receive queue, which lives on one poll core with all its QPs.
#[derive(Debug)]
pub struct Srq {
    /// Its number. The slot is its place on the core.
    pub number: u32,
    /// Its PD: that of the memory its receives name.
    pub pd: Key,
    /// The poll core it lives on.
    pub core: usize,
    /// Where it stands in the region.
    pub slice: Slice,
    /// Units of its ring.
    pub depth: u32,
    /// Units of each receive.
    pub stride: u32,
    /// What its limit is armed with; 0 when it is not.
    pub limit: u32,
    /// Its ring was forged: nothing is taken from it any more.
    pub failed: bool,
    /// What an XRC SRQ depends on besides.
    pub xrc: Option<XrcKeys>,
}

/// What an XRC SRQ depends on and others do not.
#[derive(Copy, Clone, Debug)]
pub struct XrcKeys {
    /// The CQ of its receives.
    pub cq: Key,
    /// Its client's opening of the domain.
    pub xrcd: Key,
}

impl Srq {
    /// Its slot: index on its core.
    pub fn slot(&self) -> u32 {
        view::slot_of(self.number)
    }

    /// Receives it holds.
    pub fn max_wr(&self) -> u32 {
        self.depth / self.stride
    }

    /// Entries of each.
    fn max_sge(&self) -> u32 {
        (0..=MAX_SGE)
            .rev()
            .find(|sges| Wqe::units_for_sges(*sges) <= self.stride)
            .unwrap_or(0) as u32
    }
}

/// An SRQ that its core is taking in. It holds its PD.
#[derive(Debug)]
pub struct SrqCreation {
    device: u32,
    handle: Handle,
    srq: Srq,
}

impl Control {
    pub(crate) fn create_srq(&mut self, conn: u32, arg: &CreateSrq) -> Verb<Outcome> {
        self.check_present_for(conn, arg.pd)?;
        self.allow(conn, Kind::Srq)?;
        let size = self.srq_size(arg.max_wr, arg.max_sge)?;
        let (pd, device) = self.hold(conn, Kind::Pd, arg.pd, "pd")?;
        let made = self.install_srq(conn, device, pd, size, None);
        if made.is_err() {
            self.objects.put(pd);
        }
        made.map(|()| Outcome::Pending)
    }

    pub(crate) fn create_xrc_srq(&mut self, conn: u32, arg: &CreateXrcSrq) -> Verb<Outcome> {
        self.check_present_for(conn, arg.pd)?;
        self.allow(conn, Kind::Srq)?;
        let size = self.srq_size(arg.max_wr, arg.max_sge)?;
        let mut held = Vec::new();
        let made = self.hold_for_xrc(conn, arg, &mut held).and_then(|device| {
            let [pd, cq, xrcd] = held[..] else {
                return Err(Refusal::invalid("create_xrc_srq"));
            };
            self.install_srq(conn, device, pd, size, Some(XrcKeys { cq, xrcd }))
        });
        if made.is_err() {
            for key in held {
                self.objects.put(key);
            }
        }
        made.map(|()| Outcome::Pending)
    }

    /// Holds PD, CQ and domain, all of one device.
    fn hold_for_xrc(&mut self, conn: u32, arg: &CreateXrcSrq, held: &mut Vec<Key>) -> Verb<u32> {
        let (pd, device) = self.hold(conn, Kind::Pd, arg.pd, "pd")?;
        held.push(pd);
        for (kind, handle, field) in [(Kind::Cq, arg.cq, "cq"), (Kind::Xrcd, arg.xrcd, "xrcd")] {
            let (key, of) = self.hold(conn, kind, handle, field)?;
            held.push(key);
            if of != device {
                return Err(Refusal::invalid(format!(
                    "{field} belongs to another device than pd"
                )));
            }
            if matches!(self.objects.peek(key).map(|o| &o.what), Some(What::Cq(cq)) if cq.failed) {
                return Err(Refusal::invalid(format!(
                    "cq is {handle:#x}, which has overflowed (CQ_ERR); make another CQ"
                )));
            }
        }
        Ok(device)
    }

    /// Units of a ring for so many receives, and of each of them.
    fn srq_size(&self, max_wr: u32, max_sge: u32) -> Verb<(u32, u32)> {
        if max_sge as usize > MAX_SGE {
            return Err(Refusal::invalid(format!(
                "max_sge is {max_sge}; it must be at most {MAX_SGE}"
            )));
        }
        let stride = Wqe::units_for_sges(max_sge as usize);
        let limit = self.quota.wr_depth();
        let units = max_wr.max(1).checked_mul(stride);
        match units.and_then(u32::checked_next_power_of_two) {
            Some(depth) if depth <= limit => Ok((depth, stride)),
            _ => Err(Refusal::invalid(format!(
                "max_wr is {max_wr}, of {stride} units each; together they must be at most {limit} units \
                 (limits.per_client.wr_depth)"
            ))),
        }
    }

    fn install_srq(
        &mut self,
        conn: u32,
        device: u32,
        pd: Key,
        (depth, stride): (u32, u32),
        xrc: Option<XrcKeys>,
    ) -> Verb<()> {
        let pd_number = self.number_of(pd);
        let part = xrc.map(|XrcKeys { cq, xrcd }| XrcPart {
            xrcd: self.number_of(xrcd),
            cq: self.number_of(cq),
        });
        let domain = xrc.and_then(|xrc| match &self.objects.peek(xrc.xrcd)?.what {
            What::Xrcd(xrcd) => Some(xrcd.core),
            _ => None,
        });
        let full = || Refusal::exhausted("no SRQ number is free in the daemon; destroy SRQs first");
        let Number { slot, generation } = self.numbers.srqs.take().ok_or_else(full)?;
        // Spread over the cores, as QPs are; or where the target QPs of its domain are.
        let core = domain.unwrap_or(slot as usize % self.engine.core_count());
        let placed = self
            .answers(core)
            .and_then(|()| self.take_place(conn, work_queue_size(depth)));
        let (handle, slice) = placed.inspect_err(|_| self.numbers.srqs.give(slot))?;
        let client = self.client_mut(conn)?;
        let (region, index) = (client.region.clone(), client.index);
        // Nobody is told of what is posted: QPs look when they need a receive.
        region.copy_in(slice.offset, &[0; size_of::<RingIndices>()]);
        let number = view::number(slot, generation);
        client.events.install(&region, handle, number);
        let made = self.engine.make_srq(SrqInit {
            number,
            core: core as u32,
            handle: handle.0,
            client: index,
            pd: pd_number,
            region,
            offset: slice.offset as u64,
            depth,
            stride,
            xrc: part,
        });
        let engine_srq = match made {
            Ok(srq) => srq,
            Err(error) => {
                self.give_queue_space(conn, slice);
                self.give_handle(conn, handle);
                self.numbers.srqs.give(slot);
                return Err(Refusal::invalid(format!("create_srq: {error}")));
            }
        };
        let srq = Srq {
            number,
            pd,
            core,
            slice,
            depth,
            stride,
            limit: 0,
            failed: false,
            xrc,
        };
        let op = self.begin(conn, Work::CreateSrq(SrqCreation { device, handle, srq }));
        self.command(op, core, |token| Command::AddSrq {
            srq: engine_srq,
            token,
        });
        Ok(())
    }

    /// The core has taken the SRQ in.
    pub(crate) fn srq_installed(&mut self, conn: u32, creation: SrqCreation) -> Reply {
        let SrqCreation { device, handle, srq } = creation;
        let reply = CreateSrqReply {
            handle: handle.0,
            srqn: srq.number,
            offset: srq.slice.offset as u64,
            depth: srq.depth,
            stride: srq.stride,
            max_wr: srq.max_wr(),
            max_sge: srq.max_sge(),
        };
        let id = (IdKind::Number(view::Kind::Srq), srq.number);
        self.publish(Object::new(conn, handle, device, What::Srq(srq)), Some(id));
        Reply::new(&reply)
    }

    pub(crate) fn modify_srq(&mut self, conn: u32, arg: &ModifySrq) -> Verb<Outcome> {
        let (key, srq) = self.srq(conn, arg.handle)?;
        let unknown = arg.mask & !(srq_mask::MAX_WR | srq_mask::LIMIT);
        if unknown != 0 || arg.mask == 0 {
            return Err(Refusal::invalid(format!(
                "mask is {:#x}; IBV_SRQ_LIMIT (0x2) can be changed",
                arg.mask
            )));
        }
        if arg.mask & srq_mask::MAX_WR != 0 {
            return Err(Refusal::unsupported(
                "an SRQ cannot be resized; leave IBV_SRQ_MAX_WR (0x1) out of the mask",
            ));
        }
        if arg.srq_limit > srq.max_wr() {
            return Err(Refusal::invalid(format!(
                "srq_limit is {}; the SRQ holds {}",
                arg.srq_limit,
                srq.max_wr()
            )));
        }
        let (core, slot, limit) = (srq.core, srq.slot(), arg.srq_limit);
        self.answers(core)?;
        let op = self.begin(conn, Work::ArmSrq(key, limit));
        self.command(op, core, |token| Command::ArmSrq { slot, limit, token });
        Ok(Outcome::Pending)
    }

    /// The core has armed the limit. Events that it told before are heard by now, and those of this limit are not.
    pub(crate) fn srq_armed(&mut self, key: Key, limit: u32) -> Reply {
        if let Some(What::Srq(srq)) = self.objects.peek_mut(key).map(|object| &mut object.what) {
            srq.limit = limit;
        }
        self.save(key);
        Reply::default()
    }

    pub(crate) fn query_srq(&mut self, conn: u32, arg: &HandleArg) -> Verb<Reply> {
        let (_, srq) = self.srq(conn, arg.handle)?;
        Ok(Reply::new(&QuerySrqReply {
            max_wr: srq.max_wr(),
            max_sge: srq.max_sge(),
            srq_limit: srq.limit,
            reserved: 0,
        }))
    }

    fn srq(&mut self, conn: u32, handle: u32) -> Verb<(Key, &Srq)> {
        let key = self.find(conn, Kind::Srq, handle, "handle")?;
        match self.objects.peek(key).map(|object| &object.what) {
            Some(What::Srq(srq)) => Ok((key, srq)),
            _ => Err(Refusal::invalid("handle is of no SRQ")),
        }
    }
}
