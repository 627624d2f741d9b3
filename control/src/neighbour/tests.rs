//! The cache in virtual time.
use super::{
    entry::{SEARCH, SETTLE, SILENT_FOR, SILENT_RETRY, STALE_FOR},
    *,
};

const MAC: [u8; 6] = [2, 0, 0, 0, 0, 7];
const OTHER: [u8; 6] = [2, 0, 0, 0, 0, 8];
const THIRD: [u8; 6] = [2, 0, 0, 0, 0, 9];
const LIFETIME: Duration = Duration::from_secs(30);

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn target() -> Target {
    Target {
        port: 0,
        vlan: None,
        ip: ip("10.0.0.7"),
        from: ip("10.0.0.1"),
    }
}

fn says(mac: [u8; 6]) -> Heard {
    Heard {
        ip: target().ip,
        mac,
        to_us: true,
        overrides: true,
    }
}

/// A table with its clock.
struct World {
    table: Neighbours,
    now: Instant,
    /// What was asked, with the time since the start.
    asked: Vec<(Duration, Question)>,
    start: Instant,
}

impl World {
    fn new() -> Self {
        Self::with_ports("")
    }

    fn with_ports(neighbours: &str) -> Self {
        let text = format!(
            "version: 1\nports:\n  - {{name: rnic0, device: {{vdev: net_null0}}, addresses: [10.0.0.1/24]{neighbours}}}"
        );
        let config = rnic_config::Config::parse(&text, "test.yaml").unwrap_or_else(|error| panic!("{error}"));
        let start = Instant::now();
        World {
            table: Neighbours::new(&config.ports, 16, LIFETIME, start),
            now: start,
            asked: Vec::new(),
            start,
        }
    }

    fn tick(&mut self) -> Vec<Resolved> {
        let (asked, since) = (&mut self.asked, self.now - self.start);
        self.table
            .tick(self.now, |_, question| asked.push((since, question)))
    }

    /// Lets so much time pass, and does everything when it is due.
    fn pass(&mut self, time: Duration) -> Vec<Resolved> {
        let end = self.now + time;
        let mut failed = self.tick();
        while let Some(due) = self.table.deadline().filter(|due| *due <= end) {
            self.now = due;
            failed.extend(self.tick());
        }
        self.now = end;
        failed
    }

    fn learn(&mut self, heard: Heard) -> Learned {
        self.table.learn(0, None, &heard, self.now)
    }

    fn lookup(&self) -> Lookup {
        self.table.lookup(&target())
    }

    fn known(&self) -> Option<[u8; 6]> {
        match self.lookup() {
            Lookup::Known { mac, .. } => Some(mac),
            _ => None,
        }
    }

    fn state(&self) -> &'static str {
        self.table
            .iter()
            .find(|shown| shown.ip == target().ip)
            .map_or("absent", |shown| shown.state)
    }

    fn attach(&mut self, place: Place) {
        let Lookup::Known { entry, .. } = self.lookup() else {
            panic!("{:?}", self.lookup());
        };
        self.table
            .attach(entry, &target(), place, User::Ah(place), self.now);
    }

    fn questions(&mut self) -> Vec<Question> {
        self.asked.drain(..).map(|(_, question)| question).collect()
    }
}

#[test]
fn everyone_who_waits_gets_the_answer_of_one_question() {
    let mut world = World::new();
    world.table.wait(target(), 1, world.now).unwrap();
    world.table.wait(target(), 2, world.now).unwrap();
    assert!(world.tick().is_empty());
    assert_eq!(world.questions(), [Question::All], "one question for both");
    let learned = world.learn(says(MAC));
    assert_eq!((learned.waiting, learned.changed), (vec![1, 2], None));
    assert_eq!((world.known(), world.state()), (Some(MAC), "reachable"));
    let elsewhere = Target {
        vlan: Some(5),
        ..target()
    };
    assert_eq!(world.table.lookup(&elsewhere), Lookup::Unknown);
}

#[test]
fn a_silent_station_is_asked_four_times_is_known_to_be_silent_and_then_forgotten() {
    let mut world = World::new();
    world.table.wait(target(), 1, world.now).unwrap();
    let failed = world.pass(SEARCH.iter().sum());
    assert_eq!(world.questions(), [Question::All; SEARCH.len()]);
    assert_eq!(
        failed,
        [Resolved {
            waiting: vec![1],
            found: false
        }]
    );
    assert_eq!(world.lookup(), Lookup::Silent);
    world.pass(SILENT_FOR);
    assert_eq!((world.state(), world.lookup()), ("absent", Lookup::Unknown));
    assert_eq!(world.table.deadline(), None);
}

#[test]
fn who_waits_for_a_silent_station_has_it_asked_again() {
    let mut world = World::new();
    world.table.wait(target(), 1, world.now).unwrap();
    world.pass(SEARCH.iter().sum());
    world.questions();
    world.table.wait(target(), 2, world.now).unwrap();
    world.tick();
    assert_eq!(world.questions(), [Question::All]);
    assert_eq!(world.learn(says(MAC)).waiting, [2]);
}

#[test]
fn a_neighbour_nobody_uses_grows_stale_and_is_forgotten_without_a_question() {
    let mut world = World::new();
    world.learn(says(MAC));
    world.learn(says(MAC));
    assert_eq!(world.state(), "reachable");
    world.pass(LIFETIME);
    assert_eq!(
        (world.state(), world.known()),
        ("stale", Some(MAC)),
        "still believed"
    );
    world.pass(STALE_FOR);
    assert_eq!((world.state(), world.questions()), ("absent", vec![]));
}

#[test]
fn a_neighbour_in_use_is_asked_itself_before_it_is_no_longer_believed() {
    let mut world = World::new();
    world.table.wait(target(), 1, world.now).unwrap();
    world.learn(says(MAC));
    world.attach(3);
    world.questions();
    for _ in 0..3 {
        world.pass(LIFETIME);
        assert_eq!((world.state(), world.known()), ("probe", Some(MAC)));
        assert_eq!(world.questions(), [Question::One(MAC)]);
        assert_eq!(world.learn(says(MAC)), Learned::default());
        assert_eq!(world.state(), "reachable");
    }
}

#[test]
fn a_neighbour_that_moved_without_a_word_is_found_by_asking_everyone() {
    let mut world = World::new();
    world.table.wait(target(), 1, world.now).unwrap();
    world.learn(says(MAC));
    world.attach(3);
    world.attach(4);
    world.pass(LIFETIME);
    world.questions();
    world.pass(Duration::from_millis(2300));
    assert_eq!(
        world.questions(),
        [Question::One(MAC), Question::One(MAC), Question::All]
    );
    assert_eq!(world.known(), Some(MAC), "believed as long as it is asked");
    let (entry, mac) = world.learn(says(OTHER)).changed.unwrap();
    assert_eq!(
        (mac, world.known(), world.state()),
        (OTHER, Some(OTHER), "reachable")
    );
    assert_eq!(world.table.users(entry).len(), 2);
}

#[test]
fn a_neighbour_in_use_that_falls_silent_keeps_its_users_and_is_asked_on() {
    let mut world = World::new();
    world.table.wait(target(), 1, world.now).unwrap();
    world.learn(says(MAC));
    world.attach(3);
    world.pass(LIFETIME + Duration::from_secs(3) + SEARCH.iter().sum());
    assert_eq!((world.state(), world.lookup()), ("failed", Lookup::Silent));
    world.questions();
    world.pass(SILENT_RETRY * 3);
    assert_eq!(world.questions(), [Question::All; 3]);
    let (entry, mac) = world.learn(says(OTHER)).changed.unwrap();
    assert_eq!(
        (mac, world.table.users(entry), world.state()),
        (OTHER, vec![User::Ah(3)], "reachable")
    );
}

#[test]
fn a_stale_neighbour_is_asked_as_soon_as_it_is_used() {
    let mut world = World::new();
    world.learn(says(MAC));
    assert_eq!(world.state(), "stale", "it spoke unasked");
    world.attach(3);
    assert_eq!(world.table.deadline(), Some(world.now));
    world.tick();
    assert_eq!(world.questions(), [Question::One(MAC)]);
}

#[test]
fn an_announced_move_is_believed_and_verified() {
    let mut world = World::new();
    world.table.wait(target(), 1, world.now).unwrap();
    world.learn(says(MAC));
    world.attach(3);
    world.pass(Duration::from_secs(1));
    world.questions();
    let announced = world.learn(Heard {
        to_us: false,
        ..says(OTHER)
    });
    assert_eq!(announced.changed.map(|(_, mac)| mac), Some(OTHER));
    assert_eq!((world.known(), world.state()), (Some(OTHER), "probe"));
    world.tick();
    assert_eq!(world.questions(), [Question::One(OTHER)]);
    // It was a lie: the one who claimed it says nothing, the true one does.
    world.pass(Duration::from_millis(300));
    assert_eq!(world.questions(), [Question::All]);
    assert_eq!(world.learn(says(MAC)).changed.map(|(_, mac)| mac), Some(MAC));
}

#[test]
fn moves_in_quick_succession_are_not_followed_but_verified_later() {
    let mut world = World::new();
    world.table.wait(target(), 1, world.now).unwrap();
    world.learn(says(MAC));
    world.attach(3);
    let mut changes = 0;
    for round in 0..1000u32 {
        let mac = if round % 2 == 0 { OTHER } else { THIRD };
        changes += u32::from(world.learn(says(mac)).changed.is_some());
        world.pass(Duration::from_millis(1));
    }
    assert!(changes <= 10, "{changes} changes in a second");
    world.pass(SETTLE);
    let asked = world.questions();
    assert!(!asked.is_empty() && asked.len() <= 25, "{asked:?}");
}

#[test]
fn an_advertisement_that_does_not_insist_changes_nothing() {
    let mut world = World::new();
    world.table.wait(target(), 1, world.now).unwrap();
    world.learn(says(MAC));
    world.attach(3);
    let shy = Heard {
        overrides: false,
        ..says(OTHER)
    };
    assert_eq!(world.learn(shy), Learned::default());
    assert_eq!((world.known(), world.state()), (Some(MAC), "probe"));
    // Unless the one known does not answer, and everyone is asked.
    world.pass(Duration::from_secs(1));
    assert_eq!(world.questions().last(), Some(&Question::All));
    assert_eq!(world.learn(shy).changed.map(|(_, mac)| mac), Some(OTHER));
    assert_eq!(world.state(), "reachable");
}

#[test]
fn what_others_tell_each_other_fills_nothing() {
    let mut world = World::new();
    let hearsay = Heard {
        to_us: false,
        ..says(MAC)
    };
    world.learn(hearsay);
    world.learn(says([1, 0, 0, 0, 0, 7]));
    assert_eq!(world.lookup(), Lookup::Unknown);
    world.table.wait(target(), 1, world.now).unwrap();
    assert_eq!(world.learn(hearsay).waiting, [1], "but it answers who waits");
}

#[test]
fn a_configured_neighbour_never_expires_and_is_never_overridden() {
    let mut world = World::with_ports(", neighbours: [{ip: 10.0.0.7, mac: '02:00:00:00:00:07'}]");
    world.attach(3);
    world.learn(says(OTHER));
    world.pass(LIFETIME * 10);
    assert_eq!((world.known(), world.state()), (Some(MAC), "static"));
    assert!(world.questions().is_empty());
    let elsewhere = Target {
        vlan: Some(5),
        ..target()
    };
    assert!(matches!(
        world.table.lookup(&elsewhere),
        Lookup::Known { mac: MAC, .. }
    ));
}

#[test]
fn the_table_is_bounded_and_forgets_the_oldest_that_nobody_uses() {
    let mut world = World::new();
    let station = |i: u32| IpAddr::from((0x0A01_0000 + i).to_be_bytes());
    world.learn(says(MAC));
    world.attach(3);
    for i in 0..CAPACITY as u32 + 10 {
        world.now += Duration::from_millis(1);
        world.learn(Heard {
            ip: station(i),
            ..says(OTHER)
        });
    }
    assert_eq!(world.table.iter().count(), CAPACITY);
    assert_eq!(world.known(), Some(MAC), "the oldest of all, but in use");
    let at = |i| Target {
        ip: station(i),
        ..target()
    };
    assert_eq!(world.table.lookup(&at(0)), Lookup::Unknown);
    assert!(matches!(world.table.lookup(&at(100)), Lookup::Known { .. }));
}

#[test]
fn a_table_full_of_neighbours_in_use_refuses_more() {
    let mut world = World::new();
    let at = |i: u32| Target {
        ip: IpAddr::from((0x0A01_0000 + i).to_be_bytes()),
        ..target()
    };
    for i in 0..CAPACITY as u32 {
        world.table.wait(at(i), 1, world.now).unwrap();
    }
    assert_eq!(world.table.wait(target(), 2, world.now), Err(Full));
    world.learn(says(MAC));
    assert_eq!(world.lookup(), Lookup::Unknown);
    world.table.forget(1);
    world.table.wait(target(), 2, world.now).unwrap();
}

#[test]
fn a_wish_is_searched_for_without_anyone_waiting() {
    let mut world = World::new();
    world.table.wish(target(), world.now);
    assert_eq!(world.table.deadline(), Some(world.now));
    assert!(world.tick().is_empty());
    assert_eq!(world.questions(), [Question::All]);
    assert_eq!(world.learn(says(MAC)), Learned::default());
    assert_eq!(world.known(), Some(MAC));
}

#[test]
fn the_neighbours_of_a_port_that_is_gone_are_gone_with_their_users() {
    let mut world = World::with_ports(", neighbours: [{ip: 10.0.0.8, mac: '02:00:00:00:00:08'}]");
    world.learn(says(MAC));
    world.attach(3);
    let waited_for = Target {
        ip: ip("10.0.0.9"),
        ..target()
    };
    world.table.wait(waited_for, 5, world.now).unwrap();
    world.tick();
    let failed = world.table.remove_port(0);
    assert_eq!(
        failed,
        [Resolved {
            waiting: vec![5],
            found: false
        }]
    );
    assert_eq!((world.table.iter().count(), world.table.deadline()), (0, None));
    world.table.detach(3);
    world.learn(says(MAC));
    world.attach(3);
}
