//! Address handles: paths to peers that datagrams are sent over (DESIGN I8).
//!
//! The sleepable form finds the next hop's MAC address and may wait for it. The atomic form
//! ([`Control::ah_at_once`]) takes a slot that is kept ready and a MAC address that is known, or says at once why
//! not; it waits for nothing and allocates nothing, so that it can be used inside a
//! [`rnic_engine::nonblocking::NonBlocking`] section.

use std::{collections::VecDeque, net::IpAddr, time::Instant};

use rnic_abi::{Av, CreateAh, CreateAhReply, Handle, HandleArg, QueryAhReply, ah_flags};
use rnic_engine::view;
use rustix::io::Errno;

use super::{IdKind, Key, Kind, Number, Numbers, Object, What};
use crate::{
    control::Control,
    device::Device,
    dispatch::Outcome,
    gid::GidHold,
    lock_order::might_reclaim,
    neighbour::{Lookup, Place, Target, User},
    ops::Work,
    refusal::{Refusal, Verb},
    route::{NextHop, Route, RouteError, datagram_route},
    session::Reply,
};

/// Slots kept ready for the atomic form.
pub const RESERVE: u32 = 64;

/// An address handle.
#[derive(Debug)]
pub struct Ah {
    /// Its PD.
    pub pd: Key,
    /// Its number: slot and generation, 24 bits.
    pub number: u32,
    /// The address vector it was made with.
    pub av: Av,
    /// Keeps its local address at its index.
    _gid: Option<GidHold>,
}

/// An address handle that is no client's.
#[derive(Debug)]
pub struct ReadyAh {
    /// Its number: slot and generation, 24 bits.
    pub number: u32,
    /// Keeps its local address at its index.
    gid: Option<GidHold>,
}

impl Ah {
    /// One of another process. The hold of its local address is this one's to take again.
    pub fn restored(pd: Key, number: u32, av: Av) -> Self {
        Ah {
            pd,
            number,
            av,
            _gid: None,
        }
    }

    /// Its slot.
    pub fn slot(&self) -> u32 {
        view::slot_of(self.number)
    }
}

/// Whose an address handle is to be.
#[derive(Copy, Clone, Debug)]
struct Owner {
    conn: u32,
    device: u32,
    handle: Handle,
    pd: Key,
}

/// An address handle whose next hop is being asked for. It holds its PD and its handle.
#[derive(Debug)]
pub struct AhCreation {
    owner: Owner,
    pd_number: u32,
    av: Av,
    route: Route,
    gid: Option<GidHold>,
}

/// Why there is no address handle at once. Plain values: telling it allocates nothing.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum NotNow {
    /// The address vector leads nowhere.
    Route(RouteError),
    /// The MAC address of this next hop is not known; it is being asked for.
    Unresolved(IpAddr),
    /// This next hop was asked and does not answer.
    Silent(Route),
    /// No slot is ready; there will be some when the event loop has come round.
    NoReserve,
}

impl NotNow {
    /// The refusal that tells it to a client.
    pub fn refusal(self, devices: &[Device]) -> Refusal {
        match self {
            Self::Route(error) => error.refusal(devices),
            Self::Unresolved(ip) => Refusal::again(format!(
                "ah_attr.dgid: the MAC address of {ip} is not known yet; it is being asked for, try again in a moment"
            )),
            Self::Silent(route) => route.silent(),
            Self::NoReserve => Refusal::again(format!(
                "all {RESERVE} address handles that are kept ready are taken; try again in a moment"
            )),
        }
    }
}

/// The MAC address of a next hop, and the neighbour it is of, if it is not this appliance.
type NextMac = ([u8; 6], Option<(u32, Target)>);

/// Slots of address handles: the numbers, and some of them kept ready.
#[derive(Debug)]
pub struct AhSlots {
    numbers: Numbers,
    ready: VecDeque<Number>,
    /// Place of the first one among the users of neighbours.
    first_place: Place,
}

impl AhSlots {
    /// Slots by these numbers, whose users' places begin at `first_place`.
    pub fn new(numbers: Numbers, first_place: Place) -> Self {
        let mut slots = AhSlots {
            numbers,
            ready: VecDeque::with_capacity(RESERVE as usize),
            first_place,
        };
        slots.refill();
        slots
    }

    /// The numbers.
    pub fn numbers(&self) -> &Numbers {
        &self.numbers
    }

    /// Fills the reserve.
    pub fn refill(&mut self) {
        while self.ready.len() < RESERVE as usize
            && let Some(number) = self.numbers.take()
        {
            self.ready.push_back(number);
        }
    }

    /// A slot that is ready. Allocates nothing.
    fn take_ready(&mut self) -> Option<Number> {
        self.ready.pop_front()
    }

    /// A slot; when there are few, one of those kept ready.
    fn take(&mut self) -> Option<Number> {
        self.numbers.take().or_else(|| self.ready.pop_front())
    }

    /// Takes a slot back, a grace period after its number was made invalid.
    pub fn give(&mut self, slot: u32) {
        self.numbers.give(slot);
    }

    fn place(&self, slot: u32) -> Place {
        self.first_place + slot
    }
}

impl Control {
    pub(crate) fn create_ah(&mut self, conn: u32, arg: &CreateAh) -> Verb<Outcome> {
        let CreateAh { pd, flags, ah_attr } = *arg;
        if flags & !ah_flags::NON_BLOCKING != 0 {
            return Err(Refusal::invalid(format!(
                "flags is {flags:#x}; NON_BLOCKING (0x1) is the only one"
            )));
        }
        self.check_present_for(conn, pd)?;
        self.allow(conn, Kind::Ah)?;
        let (pd, device) = self.hold(conn, Kind::Pd, pd, "pd")?;
        let at_once = flags & ah_flags::NON_BLOCKING != 0;
        let begun = self.take_handle(conn).and_then(|handle| {
            let owner = Owner {
                conn,
                device,
                handle,
                pd,
            };
            self.begin_ah(owner, ah_attr, at_once)
                .inspect_err(|_| self.give_handle(conn, handle))
        });
        if begun.is_err() {
            self.objects.put(pd);
        }
        begun
    }

    fn begin_ah(&mut self, owner: Owner, av: Av, at_once: bool) -> Verb<Outcome> {
        let pd_number = self.pd_number(owner.pd);
        let pd_number = pd_number.ok_or_else(|| Refusal::invalid("pd is being deallocated"))?;
        let now = Instant::now();
        if at_once {
            let made = self.ah_at_once(owner.device, pd_number, &av, now);
            let made = made.map_err(|why| why.refusal(&self.devices))?;
            return Ok(Outcome::Done(self.publish_ah(owner, av, made)));
        }
        let route =
            datagram_route(&self.devices, owner.device, &av).map_err(|error| error.refusal(&self.devices))?;
        let creation = AhCreation {
            owner,
            pd_number,
            av,
            route,
            gid: self.hold_gid(owner.device, &av),
        };
        match route.target() {
            Some(target) if !self.is_known(&target) => {
                let op = self.begin(owner.conn, Work::CreateAh(Box::new(creation)));
                let waits = self.await_neighbour(op, target, now);
                if waits.is_err() {
                    self.ops.take(op);
                }
                waits.map(|()| Outcome::Pending)
            }
            _ => self.ah_over(creation).map(Outcome::Done),
        }
    }

    /// The neighbour an address handle waits for has answered, or it was given up.
    pub(crate) fn ah_resolved(&mut self, creation: AhCreation, found: bool) {
        let owner = creation.owner;
        let made = if found {
            self.ah_over(creation)
        } else {
            Err(creation.route.silent())
        };
        if made.is_err() {
            self.let_go(owner);
        }
        self.answer(owner.conn, made);
    }

    /// Nobody waits for an address handle any more.
    pub(crate) fn abandon_ah(&mut self, creation: &AhCreation) {
        self.let_go(creation.owner);
    }

    fn let_go(&mut self, owner: Owner) {
        self.give_handle(owner.conn, owner.handle);
        self.objects.put(owner.pd);
    }

    /// Makes an address handle whose next hop is known.
    fn ah_over(&mut self, creation: AhCreation) -> Verb<Reply> {
        let AhCreation {
            owner,
            pd_number,
            av,
            route,
            gid,
        } = creation;
        let hop = self.next_hop(&route).map_err(|why| why.refusal(&self.devices))?;
        let full = || Refusal::exhausted("no address handle is free in the daemon; destroy some first");
        let number = self.ahs.take().ok_or_else(full)?;
        let number = self.install_ah(number, pd_number, &av, &route, hop, Instant::now());
        Ok(self.publish_ah(owner, av, ReadyAh { number, gid }))
    }

    fn hold_gid(&self, device: u32, av: &Av) -> Option<GidHold> {
        let device = self.devices.get(device as usize)?;
        device.gids.hold(av.sgid_index.into())
    }

    /// The atomic form: an address handle of the protection domain `pd`, now or never, for datagrams and then
    /// [`Control::drop_ah`]. May be called inside a non-blocking section.
    pub(crate) fn ah_at_once(
        &mut self,
        device: u32,
        pd: u32,
        av: &Av,
        now: Instant,
    ) -> Result<ReadyAh, NotNow> {
        let route = datagram_route(&self.devices, device, av).map_err(NotNow::Route)?;
        let hop = self.next_hop(&route).inspect_err(|why| {
            if let (NotNow::Unresolved(_), Some(target)) = (why, route.target()) {
                self.neighbours.wish(target, now);
            }
        })?;
        let number = self.ahs.take_ready().ok_or(NotNow::NoReserve)?;
        let number = self.install_ah(number, pd, av, &route, hop, now);
        let gid = self.hold_gid(device, av);
        Ok(ReadyAh { number, gid })
    }

    /// The MAC address of a next hop, and the neighbour it is of.
    pub(crate) fn next_hop(&self, route: &Route) -> Result<NextMac, NotNow> {
        match route.next_hop {
            NextHop::Own { mac, .. } | NextHop::Group { mac } => Ok((mac, None)),
            NextHop::Neighbour(target) => match self.neighbours.lookup(&target) {
                Lookup::Known { entry, mac } => Ok((mac, Some((entry, target)))),
                Lookup::Unknown => Err(NotNow::Unresolved(target.ip)),
                Lookup::Silent => Err(NotNow::Silent(*route)),
            },
        }
    }

    /// Puts the path into the slot, where the cores find it.
    fn install_ah(
        &mut self,
        Number { slot, generation }: Number,
        pd: u32,
        av: &Av,
        route: &Route,
        (mac, neighbour): NextMac,
        now: Instant,
    ) -> u32 {
        let number = view::number(slot, generation);
        // The peer's QPN comes with each datagram; the source port can only be spread by the flow label.
        let path = route.path(&self.devices, av, mac, 0, 0);
        let valid = self.engine.ahs().validate(number, pd, &path);
        debug_assert!(valid, "the engine has a slot for every number");
        if let Some((entry, target)) = neighbour {
            let place = self.ahs.place(slot);
            self.neighbours
                .attach(entry, &target, place, User::Ah(number), now);
        }
        number
    }

    fn publish_ah(&mut self, owner: Owner, av: Av, made: ReadyAh) -> Reply {
        let Owner {
            conn,
            device,
            handle,
            pd,
        } = owner;
        let ReadyAh { number, gid } = made;
        let ah = Ah {
            pd,
            number,
            av,
            _gid: gid,
        };
        let object = Object::new(conn, handle, device, What::Ah(ah));
        self.publish(object, Some((IdKind::Number(view::Kind::Ah), number)));
        Reply::new(&CreateAhReply {
            handle: handle.0,
            ah: number,
        })
    }

    /// Step 2 of the destruction of an address handle: no core finds its number any more, and its neighbour does
    /// not know of it.
    pub(crate) fn unpublish_ah(&mut self, number: u32) {
        self.engine.ahs().invalidate(number);
        let place = self.ahs.place(view::slot_of(number));
        self.neighbours.detach(place);
    }

    /// Destroys an address handle that [`Control::ah_at_once`] has made and that is no client's. Waits for nothing:
    /// its slot is used again when the grace period that begins here is over.
    #[cfg_attr(not(test), expect(dead_code, reason = "for the connection manager"))]
    pub(crate) fn drop_ah(&mut self, ah: ReadyAh) {
        self.unpublish_ah(ah.number);
        let epoch = self.engine.start_grace();
        self.dropped_ahs.push_back((epoch, view::slot_of(ah.number)));
    }

    /// Takes back the slots of dropped address handles whose grace period is over, and keeps the reserve full.
    pub(crate) fn tend_ahs(&mut self) {
        might_reclaim();
        while let Some((epoch, slot)) = self.dropped_ahs.front().copied()
            && self.has_passed(epoch)
        {
            self.dropped_ahs.pop_front();
            self.ahs.give(slot);
        }
        self.ahs.refill();
    }

    pub(crate) fn query_ah(&mut self, conn: u32, arg: &HandleArg) -> Verb<Reply> {
        let key = self.find(conn, Kind::Ah, arg.handle, "handle")?;
        let Some(What::Ah(ah)) = self.objects.peek(key).map(|object| &object.what) else {
            return Err(Refusal::new(Errno::INVAL, "handle is of no AH"));
        };
        let path = self.engine.ahs().path(ah.number);
        Ok(Reply::new(&QueryAhReply {
            ah_attr: ah.av,
            ah: ah.number,
            next_hop: path.map_or([0; 6], |path| path.remote_mac),
            reserved: [0; 2],
        }))
    }
}
