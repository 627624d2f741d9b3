//! MAC addresses of stations on the links: configured, learned from ARP and neighbour discovery, or asked for.
//!
//! The table has no clock and sends nothing: [`Neighbours::tick`] says whom to ask.

use std::{
    collections::HashMap,
    net::IpAddr,
    time::{Duration, Instant},
};

use rnic_config::Port;

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

/// How long what was learned is believed.
const LIFETIME: Duration = Duration::from_secs(60);
/// Stations remembered; beyond, the one heard of longest ago is forgotten.
const CAPACITY: usize = 4096;
/// When it is asked again, after the question before.
const RETRIES: [Duration; 4] = [
    Duration::from_millis(200),
    Duration::from_millis(400),
    Duration::from_millis(800),
    Duration::from_millis(1600),
];

type Place = (u16, Option<u16>, IpAddr);

impl Target {
    fn place(&self) -> Place {
        (self.port, self.vlan, self.ip)
    }
}

#[derive(Debug)]
struct Learned {
    mac: [u8; 6],
    at: Instant,
}

#[derive(Debug)]
struct Pending {
    target: Target,
    /// Who waits, by the caller's name for it.
    waiting: Vec<u64>,
    asked: usize,
    next: Instant,
}

/// A question that has ended.
#[derive(Debug, PartialEq, Eq)]
pub struct Resolved {
    /// Who waited.
    pub waiting: Vec<u64>,
    /// The answer; `None` when nobody answered.
    pub mac: Option<[u8; 6]>,
}

/// The table of all ports.
#[derive(Debug, Default)]
pub struct Neighbours {
    fixed: HashMap<(u16, IpAddr), [u8; 6]>,
    learned: HashMap<Place, Learned>,
    pending: HashMap<Place, Pending>,
}

impl Neighbours {
    /// The configured neighbours of each port.
    pub fn new(ports: &[Port]) -> Self {
        let fixed = ports
            .iter()
            .enumerate()
            .flat_map(|(i, port)| port.neighbours.iter().map(move |n| ((i as u16, n.ip), n.mac.0)));
        Neighbours {
            fixed: fixed.collect(),
            ..Self::default()
        }
    }

    /// The MAC address of a station, if it is known.
    pub fn lookup(&self, target: &Target, now: Instant) -> Option<[u8; 6]> {
        let fixed = self.fixed.get(&(target.port, target.ip)).copied();
        fixed.or_else(|| {
            let learned = self.learned.get(&target.place())?;
            (now.duration_since(learned.at) < LIFETIME).then_some(learned.mac)
        })
    }

    /// Has `waiter` wait for a station. The next [`Neighbours::tick`] asks for it.
    pub fn wait(&mut self, target: Target, waiter: u64, now: Instant) {
        let fresh = || Pending {
            target,
            waiting: Vec::new(),
            asked: 0,
            next: now,
        };
        self.pending
            .entry(target.place())
            .or_insert_with(fresh)
            .waiting
            .push(waiter);
    }

    /// A waiter no longer cares.
    pub fn forget(&mut self, waiter: u64) {
        self.pending.retain(|_, pending| {
            pending.waiting.retain(|w| *w != waiter);
            !pending.waiting.is_empty()
        });
    }

    /// A station has told its MAC address. `to_us`: in a packet for us; what others tell each other only
    /// refreshes what is known.
    pub fn learn(
        &mut self,
        port: u16,
        vlan: Option<u16>,
        ip: IpAddr,
        mac: [u8; 6],
        to_us: bool,
        now: Instant,
    ) -> Option<Resolved> {
        let station = mac[0] & 1 == 0 && mac != [0; 6] && !ip.is_unspecified() && !ip.is_multicast();
        if !station {
            return None;
        }
        let place = (port, vlan, ip);
        let pending = self.pending.remove(&place);
        if to_us || pending.is_some() || self.learned.contains_key(&place) {
            if self.learned.len() >= CAPACITY && !self.learned.contains_key(&place) {
                let oldest = self
                    .learned
                    .iter()
                    .min_by_key(|(_, l)| l.at)
                    .map(|(place, _)| *place);
                oldest.and_then(|place| self.learned.remove(&place));
            }
            self.learned.insert(place, Learned { mac, at: now });
        }
        pending.map(|pending| Resolved {
            waiting: pending.waiting,
            mac: Some(mac),
        })
    }

    /// Whom to ask now (`ask`), and the questions that nobody answered.
    pub fn tick(&mut self, now: Instant, mut ask: impl FnMut(&Target)) -> Vec<Resolved> {
        let mut failed = Vec::new();
        self.pending.retain(|_, pending| {
            if now < pending.next {
                return true;
            }
            let Some(pause) = RETRIES.get(pending.asked) else {
                let waiting = std::mem::take(&mut pending.waiting);
                failed.push(Resolved { waiting, mac: None });
                return false;
            };
            ask(&pending.target);
            pending.asked += 1;
            pending.next = now + *pause;
            true
        });
        failed
    }

    /// When the next tick is due.
    pub fn deadline(&self) -> Option<Instant> {
        self.pending.values().map(|pending| pending.next).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: [u8; 6] = [2, 0, 0, 0, 0, 7];

    fn target() -> Target {
        let ip = |text: &str| text.parse().unwrap();
        Target {
            port: 0,
            vlan: None,
            ip: ip("10.0.0.7"),
            from: ip("10.0.0.1"),
        }
    }

    #[test]
    fn everyone_who_waits_gets_the_answer_and_it_is_remembered_for_a_while() {
        let start = Instant::now();
        let mut table = Neighbours::default();
        table.wait(target(), 1, start);
        table.wait(target(), 2, start);
        let mut asked = 0;
        assert!(table.tick(start, |_| asked += 1).is_empty());
        assert_eq!(asked, 1, "one question for both");
        let resolved = table.learn(0, None, target().ip, MAC, true, start);
        assert_eq!(
            resolved,
            Some(Resolved {
                waiting: vec![1, 2],
                mac: Some(MAC)
            })
        );
        assert_eq!(table.lookup(&target(), start), Some(MAC));
        assert_eq!(
            table.lookup(
                &Target {
                    vlan: Some(5),
                    ..target()
                },
                start
            ),
            None
        );
        assert_eq!(table.lookup(&target(), start + LIFETIME), None);
    }

    #[test]
    fn a_silent_station_is_asked_four_times_and_then_given_up() {
        let mut now = Instant::now();
        let mut table = Neighbours::default();
        table.wait(target(), 1, now);
        let mut asked = 0;
        let failed = loop {
            let failed = table.tick(now, |_| asked += 1);
            if !failed.is_empty() {
                break failed;
            }
            now = table.deadline().unwrap();
        };
        assert_eq!(asked, RETRIES.len());
        assert_eq!(
            failed,
            [Resolved {
                waiting: vec![1],
                mac: None
            }]
        );
        assert_eq!(table.deadline(), None);
    }

    #[test]
    fn what_others_tell_each_other_fills_nothing() {
        let now = Instant::now();
        let mut table = Neighbours::default();
        table.learn(0, None, target().ip, MAC, false, now);
        assert_eq!(table.lookup(&target(), now), None);
        table.learn(0, None, target().ip, [1, 0, 0, 0, 0, 7], true, now);
        assert_eq!(
            table.lookup(&target(), now),
            None,
            "a multicast address is no station's"
        );
    }

    #[test]
    fn the_table_is_bounded_and_forgets_the_oldest() {
        let start = Instant::now();
        let mut table = Neighbours::default();
        for i in 0..=CAPACITY as u32 {
            let ip = IpAddr::from((0x0A00_0000 + i).to_be_bytes());
            table.learn(0, None, ip, MAC, true, start + Duration::from_millis(i.into()));
        }
        assert_eq!(table.learned.len(), CAPACITY);
        assert!(
            !table
                .learned
                .contains_key(&(0, None, "10.0.0.0".parse().unwrap()))
        );
    }

    #[test]
    fn a_client_that_left_leaves_no_question_behind() {
        let mut table = Neighbours::default();
        table.wait(target(), 1, Instant::now());
        table.forget(1);
        assert_eq!(table.deadline(), None);
    }
}
