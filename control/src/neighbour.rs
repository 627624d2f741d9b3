//! The neighbour cache: MAC addresses of stations on the links, configured, learned from ARP and neighbour discovery,
//! or asked for.
//!
//! It has no clock and sends nothing: [`Neighbours::tick`] says whom to ask. A neighbour that a QP or an address
//! handle uses is asked again before it is no longer believed; when its MAC address changes, its users are to be
//! told ([`Neighbours::users`]). One that falls silent keeps its users: their retry counters decide what becomes of
//! them. What one turn of the event loop looks up stays valid in that turn.

mod entry;
mod users;

use std::{
    collections::{BTreeSet, HashMap},
    net::IpAddr,
    time::{Duration, Instant},
};

use rnic_config::Port;

pub use self::{
    entry::Question,
    users::{Place, User},
};
use self::{
    entry::{Entry, State, Step},
    users::Users,
};
use crate::slowpath::Heard;

/// A station to be found.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
pub struct Target {
    /// Port it is behind.
    pub port: u16,
    /// VLAN it is on.
    pub vlan: Option<u16>,
    /// Its address.
    pub ip: IpAddr,
    /// The local address that asks.
    pub from: IpAddr,
}

/// Neighbours remembered beside the configured ones. Beyond, the unused one that was heard of longest ago is
/// forgotten.
pub const CAPACITY: usize = 4096;
/// Wishes that wait for the next tick; more are forgotten, and come up again when they are wished again.
const WISHES: usize = 64;

/// What is known of a target.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Lookup {
    /// It is believed to have this MAC address.
    Known {
        /// For [`Neighbours::attach`], in the same turn of the event loop.
        entry: u32,
        /// The MAC address.
        mac: [u8; 6],
    },
    /// Nothing yet.
    Unknown,
    /// It was asked for a moment ago, and nobody has answered.
    Silent,
}

/// Requests whose wait has ended.
#[derive(Debug, PartialEq, Eq)]
pub struct Resolved {
    /// Who waited, by the caller's names for them.
    pub waiting: Vec<u64>,
    /// Whether there was an answer.
    pub found: bool,
}

/// What came of something that was heard.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Learned {
    /// Requests that waited for it.
    pub waiting: Vec<u64>,
    /// Its users are to be told its new MAC address.
    pub changed: Option<(u32, [u8; 6])>,
}

/// No more neighbours can be remembered: all are in use.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Full;

/// How a neighbour is shown.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Shown {
    /// Port.
    pub port: u16,
    /// VLAN; a configured neighbour is on all of them.
    pub vlan: Option<u16>,
    /// Address.
    pub ip: IpAddr,
    /// The last MAC address known.
    pub mac: Option<[u8; 6]>,
    /// `static`, `incomplete`, `reachable`, `stale`, `probe` or `failed`.
    pub state: &'static str,
    /// When it was last heard of; none for a configured one and one that never was.
    pub heard: Option<Instant>,
    /// QPs and address handles with a path over it.
    pub users: u32,
}

#[derive(Copy, Clone, Debug)]
enum Wish {
    Search(Target),
    Probe(u32),
}

/// The table of all ports.
#[derive(Debug)]
pub struct Neighbours {
    lifetime: Duration,
    fixed: HashMap<(u16, IpAddr), u32>,
    index: HashMap<entry::Whereabouts, u32>,
    entries: Vec<Option<Entry>>,
    free: Vec<u32>,
    /// Entries by the time when something is due.
    due: BTreeSet<(Instant, u32)>,
    users: Users,
    wishes: Vec<Wish>,
    wished: Option<Instant>,
}

impl Neighbours {
    /// The configured neighbours of each port; room for `users` users; the lifetime of what is learned.
    pub fn new(ports: &[Port], users: u32, lifetime: Duration, now: Instant) -> Self {
        let mut table = Neighbours {
            lifetime,
            fixed: HashMap::new(),
            index: HashMap::with_capacity(CAPACITY),
            entries: Vec::new(),
            free: Vec::new(),
            due: BTreeSet::new(),
            users: Users::new(users),
            wishes: Vec::with_capacity(WISHES),
            wished: None,
        };
        for (number, port) in ports.iter().enumerate() {
            table.add_port(number as u16, port, now);
        }
        table
    }

    /// Takes in the configured neighbours of a port.
    pub fn add_port(&mut self, number: u16, port: &Port, now: Instant) {
        for neighbour in &port.neighbours {
            let mut entry = Entry::new((number, None, neighbour.ip), State::Static, now);
            entry.mac = Some(neighbour.mac.0);
            let id = self.place(entry);
            if let Some(before) = self.fixed.insert((number, neighbour.ip), id) {
                self.remove(before);
            }
        }
    }

    /// Forgets everything about a port that is gone. Whoever waits for one of its neighbours is told so.
    pub fn remove_port(&mut self, number: u16) -> Vec<Resolved> {
        self.fixed.retain(|(port, _), _| *port != number);
        let of_port = |(id, entry): (usize, &Option<Entry>)| {
            let entry = entry.as_ref()?;
            (entry.whereabouts.0 == number).then_some(id as u32)
        };
        let gone: Vec<u32> = self.entries.iter().enumerate().filter_map(of_port).collect();
        let removed = gone.into_iter().filter_map(|id| self.remove(id));
        removed
            .filter(|entry| !entry.waiting.is_empty())
            .map(|entry| Resolved {
                waiting: entry.waiting,
                found: false,
            })
            .collect()
    }

    /// What is known of a station. Allocates nothing.
    pub fn lookup(&self, target: &Target) -> Lookup {
        let Some((id, entry)) = self.find(target) else {
            return Lookup::Unknown;
        };
        match (entry.believed(), entry.state) {
            (Some(mac), _) => Lookup::Known { entry: id, mac },
            (None, State::Failed) => Lookup::Silent,
            (None, _) => Lookup::Unknown,
        }
    }

    /// Has a station searched for, for nobody in particular, from the next [`Neighbours::tick`] on. Allocates
    /// nothing.
    pub fn wish(&mut self, target: Target, now: Instant) {
        if self.find(&target).is_none() {
            self.wish_for(Wish::Search(target), now);
        }
    }

    /// Has `waiter` wait for a station. The next [`Neighbours::tick`] asks for it.
    pub fn wait(&mut self, target: Target, waiter: u64, now: Instant) -> Result<(), Full> {
        let id = match self.find(&target) {
            Some((id, _)) => id,
            None => self.search(target, now)?,
        };
        self.with(id, |entry| {
            entry.from = Some(target.from);
            entry.waiting.push(waiter);
            if entry.state == State::Failed {
                entry.search(now);
            }
        });
        Ok(())
    }

    /// A waiter no longer cares.
    pub fn forget(&mut self, waiter: u64) {
        for entry in self.entries.iter_mut().flatten() {
            entry.waiting.retain(|w| *w != waiter);
        }
    }

    /// A user has a path over an entry that was just looked up. It leaves the one it had before. Allocates nothing;
    /// an entry that is not certain any more is asked soon.
    pub fn attach(&mut self, id: u32, target: &Target, place: Place, user: User, now: Instant) {
        self.detach(place);
        let Some(entry) = self.entries.get_mut(id as usize).and_then(Option::as_mut) else {
            return;
        };
        entry.from = Some(target.from);
        self.users.insert(&mut entry.users, id, place, user);
        if entry.state == State::Stale {
            self.wish_for(Wish::Probe(id), now);
        }
    }

    /// The same for a user that has its path already, whatever has become of the neighbour since: it is searched for
    /// if it was forgotten. Tells its MAC address, if one is believed.
    pub fn adopt(
        &mut self,
        target: &Target,
        place: Place,
        user: User,
        now: Instant,
    ) -> Result<Option<[u8; 6]>, Full> {
        let id = match self.find(target) {
            Some((id, _)) => id,
            None => {
                self.detach(place);
                self.search(*target, now)?
            }
        };
        self.attach(id, target, place, user, now);
        let entry = self.entries.get(id as usize).and_then(Option::as_ref);
        Ok(entry.and_then(Entry::believed))
    }

    /// A user has no path over a neighbour any more. Allocates nothing.
    pub fn detach(&mut self, place: Place) {
        if let Some(id) = self.users.entry_of(place)
            && let Some(entry) = self.entries.get_mut(id as usize).and_then(Option::as_mut)
        {
            self.users.remove(&mut entry.users, place);
        }
    }

    /// The users of an entry.
    pub fn users(&self, id: u32) -> Vec<User> {
        let entry = self.entries.get(id as usize).and_then(Option::as_ref);
        entry
            .map(|entry| self.users.of(&entry.users).collect())
            .unwrap_or_default()
    }

    /// A station behind `port` has told its MAC address.
    pub fn learn(&mut self, port: u16, vlan: Option<u16>, heard: &Heard, now: Instant) -> Learned {
        let (ip, mac) = (heard.ip, heard.mac);
        let station = mac[0] & 1 == 0 && mac != [0; 6] && !ip.is_unspecified() && !ip.is_multicast();
        if !station || self.fixed.contains_key(&(port, ip)) {
            return Learned::default();
        }
        let whereabouts = (port, vlan, ip);
        let Some(&id) = self.index.get(&whereabouts) else {
            // What others tell each other fills nothing.
            if heard.to_us && self.make_room().is_ok() {
                let mut entry = Entry::new(whereabouts, State::Stale, now);
                entry.mac = Some(mac);
                entry.suspect(now);
                self.place(entry);
            }
            return Learned::default();
        };
        let lifetime = self.lifetime;
        let learned = self.with(id, |entry| {
            let changed = entry.hear(heard, lifetime, now);
            let waiting = match entry.believed() {
                Some(_) => std::mem::take(&mut entry.waiting),
                None => Vec::new(),
            };
            Learned {
                waiting,
                changed: changed.then_some((id, mac)),
            }
        });
        learned.unwrap_or_default()
    }

    /// Does what is due: whom to ask (`ask`), and the requests that waited in vain.
    pub fn tick(&mut self, now: Instant, mut ask: impl FnMut(&Target, Question)) -> Vec<Resolved> {
        self.fulfil_wishes(now);
        let mut failed = Vec::new();
        while let Some(&(at, id)) = self.due.first()
            && at <= now
        {
            let step = self.with(id, |entry| {
                let (port, vlan, ip) = entry.whereabouts;
                let step = entry.step(now);
                match (&step, entry.from) {
                    (Step::Ask(question), Some(from)) => ask(&Target { port, vlan, ip, from }, *question),
                    (Step::GiveUp, _) => {
                        if !entry.users.is_empty() {
                            let users = entry.users.len();
                            tracing::warn!(port, %ip, users, "a neighbour in use does not answer");
                        }
                        let waiting = std::mem::take(&mut entry.waiting);
                        if !waiting.is_empty() {
                            failed.push(Resolved {
                                waiting,
                                found: false,
                            });
                        }
                    }
                    _ => {}
                }
                step
            });
            match step {
                Some(Step::Forget) => drop(self.remove(id)),
                Some(_) => {}
                None => drop(self.due.remove(&(at, id))),
            }
        }
        failed
    }

    /// When the next tick is due.
    pub fn deadline(&self) -> Option<Instant> {
        let due = self.due.first().map(|(at, _)| *at);
        [self.wished, due].into_iter().flatten().min()
    }

    /// Every neighbour, to be shown.
    pub fn iter(&self) -> impl Iterator<Item = Shown> {
        self.entries.iter().flatten().map(|entry| {
            let (port, vlan, ip) = entry.whereabouts;
            let state = match entry.state {
                State::Static => "static",
                State::Incomplete(_) => "incomplete",
                State::Reachable => "reachable",
                State::Stale => "stale",
                State::Probe(_) => "probe",
                State::Failed => "failed",
            };
            let heard = entry.mac.filter(|_| entry.state != State::Static);
            Shown {
                port,
                vlan,
                ip,
                mac: entry.mac,
                state,
                heard: heard.map(|_| entry.heard),
                users: entry.users.len(),
            }
        })
    }

    fn find(&self, target: &Target) -> Option<(u32, &Entry)> {
        let whereabouts = (target.port, target.vlan, target.ip);
        let id = self.fixed.get(&(target.port, target.ip));
        let id = *id.or_else(|| self.index.get(&whereabouts))?;
        Some((id, self.entries.get(id as usize)?.as_ref()?))
    }

    fn wish_for(&mut self, wish: Wish, now: Instant) {
        if self.wishes.len() < WISHES {
            self.wishes.push(wish);
            self.wished.get_or_insert(now);
        }
    }

    fn fulfil_wishes(&mut self, now: Instant) {
        let mut wishes = std::mem::take(&mut self.wishes);
        for wish in wishes.drain(..) {
            match wish {
                // Full of neighbours in use: nobody waits, and who wishes again will be told.
                Wish::Search(target) if self.find(&target).is_none() => drop(self.search(target, now)),
                Wish::Search(_) => {}
                Wish::Probe(id) => {
                    self.with(id, |entry| {
                        if entry.state == State::Stale && !entry.users.is_empty() {
                            entry.probe(now);
                        }
                    });
                }
            }
        }
        // The room is kept.
        self.wishes = wishes;
        self.wished = None;
    }

    fn search(&mut self, target: Target, now: Instant) -> Result<u32, Full> {
        self.make_room()?;
        let mut entry = Entry::new((target.port, target.vlan, target.ip), State::Failed, now);
        entry.from = Some(target.from);
        entry.search(now);
        Ok(self.place(entry))
    }

    /// Changes an entry, and keeps the order of what is due.
    fn with<R>(&mut self, id: u32, change: impl FnOnce(&mut Entry) -> R) -> Option<R> {
        let entry = self.entries.get_mut(id as usize)?.as_mut()?;
        let before = entry.due;
        let result = change(entry);
        if entry.due != before {
            before.map(|at| self.due.remove(&(at, id)));
            entry.due.map(|at| self.due.insert((at, id)));
        }
        Some(result)
    }

    fn place(&mut self, entry: Entry) -> u32 {
        let id = self.free.pop().unwrap_or_else(|| {
            self.entries.push(None);
            (self.entries.len() - 1) as u32
        });
        if entry.state != State::Static {
            self.index.insert(entry.whereabouts, id);
        }
        entry.due.map(|at| self.due.insert((at, id)));
        self.entries[id as usize] = Some(entry);
        id
    }

    fn remove(&mut self, id: u32) -> Option<Entry> {
        let mut entry = self.entries.get_mut(id as usize)?.take()?;
        while let Some(place) = self.users.first_of(&entry.users) {
            self.users.remove(&mut entry.users, place);
        }
        if entry.state != State::Static {
            self.index.remove(&entry.whereabouts);
        }
        entry.due.map(|at| self.due.remove(&(at, id)));
        self.free.push(id);
        Some(entry)
    }

    fn make_room(&mut self) -> Result<(), Full> {
        if self.index.len() < CAPACITY {
            return Ok(());
        }
        let unused = self.entries.iter().enumerate();
        let unused = unused.filter_map(|(id, entry)| {
            entry
                .as_ref()
                .filter(|e| e.is_unused())
                .map(|e| (e.heard, id as u32))
        });
        let (_, id) = unused.min().ok_or(Full)?;
        self.remove(id);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
