//! A daemon's registry is dumped, and a fresh process image finds the same objects by the same ids, and gives out the
//! numbers that the daemon gives out next.

use std::{
    env,
    fmt::Write as _,
    fs::{self, File, OpenOptions},
    os::{fd::OwnedFd, unix::fs::FileExt},
    path::Path,
    sync::Arc,
};

use rnic_abi::*;
use rnic_engine::{mem::ClientMem, view};
use zerocopy::IntoBytes;

use crate::{
    objects::{IdKind, Kind, Space},
    restore::{Resources, Restored},
    session::Admitted,
    socket::{self, Packet, Received},
    store::FILES,
    testing::*,
    tests::hostile::forge_tail,
};

/// Poll cores of every daemon here.
const CORES: usize = 2;
/// Tells the test binary that it is the fresh process, and where the dump lies.
const DUMP: &str = "RNIC_TEST_DUMP";
const NAME: &str =
    "tests::restore::a_fresh_process_finds_the_same_objects_and_gives_out_the_numbers_that_come_next";

/// Memory and sockets made anew: that they are the client's is the data path's test.
struct Anew;

impl Resources for Anew {
    fn mapping(&mut self, _key: u32, _offset: u64, _length: u64) -> Option<ClientMem> {
        ClientMem::create("anew", 8192, Arc::default())
            .ok()
            .map(|made| made.0)
    }

    fn channel(&mut self, _client: u32, _handle: u32) -> Option<Arc<OwnedFd>> {
        socket::pair().ok().map(|pair| Arc::new(pair.0))
    }
}

fn dump(daemon: &TestDaemon, dir: &Path) {
    for (i, fd) in daemon.store.files().unwrap().into_iter().enumerate() {
        let from = File::from(fd);
        let mut bytes = vec![0; from.metadata().unwrap().len() as usize];
        from.read_exact_at(&mut bytes, 0).unwrap();
        fs::write(dir.join(i.to_string()), bytes).unwrap();
    }
}

fn dumped(dir: &Path) -> [OwnedFd; FILES] {
    std::array::from_fn(|i| {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(dir.join(i.to_string()));
        file.unwrap().into()
    })
}

/// What the fresh process must find.
fn check(dir: &Path) {
    let expected = fs::read_to_string(dir.join("expected")).unwrap();
    let mut lines = expected.lines();
    let epoch = lines.next().unwrap().parse().unwrap();
    let mut restored = Restored::open(epoch, CORES, dumped(dir), &mut Anew).unwrap();
    for line in restored.inventory() {
        assert_eq!(Some(&*line), lines.next());
    }
    let client = &restored.clients[&0];
    assert_eq!(client.objects.len(), restored.objects.iter().count());
    let slices = |kind: Kind| {
        let objects = restored.objects.iter().map(|(_, object)| object);
        let records = objects
            .filter(|object| object.kind() == kind)
            .map(|o| o.record.as_ref().unwrap());
        records
            .flat_map(|record| record.slices)
            .map(|slice| slice.len as usize)
            .sum::<usize>()
    };
    assert_eq!(client.space.used(), slices(Kind::Qp) + slices(Kind::Cq));
    assert_eq!(client.usage.of(Kind::Mr), 1);
    // Every object by every id, and as many holds as there are dependants.
    for (key, object) in restored.objects.iter() {
        let record = object.record.as_ref().unwrap();
        let found = restored
            .objects
            .find(IdKind::Handle(record.client), record.handle);
        assert_eq!(found, Some(key));
        assert!(object.is_saved(), "{object:?}");
    }
    // The address handles that were kept ready are nobody's.
    assert!(restored.numbers(Space::Ahs, 0).unwrap().used() > 0);
    restored.take_over();
    assert_eq!(restored.numbers(Space::Ahs, 0).unwrap().used(), 0);
    let next = |restored: &mut Restored, space| {
        let number = restored.numbers(space, 0).unwrap().take().unwrap();
        view::number(number.slot, number.generation)
    };
    let mut numbers = String::new();
    for _ in 0..40 {
        let qpn = next(&mut restored, Space::Qpns);
        let handle = restored.numbers(Space::Handles, 0).unwrap().take().unwrap();
        writeln!(numbers, "{qpn} {}", Handle::new(handle.slot, handle.generation).0).unwrap();
    }
    assert_eq!(numbers.trim_end(), lines.collect::<Vec<_>>().join("\n"));
}

#[test]
fn a_fresh_process_finds_the_same_objects_and_gives_out_the_numbers_that_come_next() {
    if let Some(dir) = env::var_os(DUMP) {
        return check(Path::new(&dir));
    }
    let daemon = TestDaemon::start(CORES as u16);
    let mut client = daemon.client();
    let (pd, cq) = (client.pd(), client.cq());
    let (channel, _socket) = client.channel();
    client.try_cq(16, channel).unwrap();
    client.try_mr(pd, &sealed_memfd(8192), 8192, 7).unwrap();
    // Numbers come and go, so that their order is not that of a fresh start.
    let mut qps: Vec<_> = (0..60).map(|_| client.qp(pd, cq)).collect();
    for i in (0..45).rev().step_by(2) {
        client.destroy_counting(Op::DestroyQp, qps.remove(i).handle);
    }
    let (a, b) = (qps[0], qps[1]);
    client.make_init(a.handle);
    client.make_rtr(a.handle, "10.0.0.2", b.qpn).unwrap();
    client.make_rts(a.handle);
    client.make_init(b.handle);
    // An event that was taken and another one that was not.
    for (taken, qp) in [(true, qps[2]), (false, qps[3])] {
        client.make_init(qp.handle);
        client.make_rtr(qp.handle, "10.0.0.2", qp.qpn).unwrap();
        client.make_rts(qp.handle);
        forge_tail(&client, &qp);
        if taken {
            client.event(0);
        } else {
            client.await_events(2);
        }
    }
    // The control thread is done with it.
    daemon.status();

    let dir = tempfile::tempdir().unwrap();
    dump(&daemon, dir.path());
    let epoch = client.boot_epoch();
    let restored = Restored::open(epoch, CORES, dumped(dir.path()), &mut Anew).unwrap();
    let mut expected = format!("{epoch}\n{}\n", restored.inventory().join("\n"));
    assert_eq!(restored.objects.iter().count(), 5 + qps.len());
    for state in [
        "state: Rts",
        "state: Init",
        "state: Reset",
        "state: Err",
        "reported: 1",
        "check: SendQueue",
        "event_tail: 2",
        "iova: 1048576, offset: 0, access: Access(7)",
    ] {
        assert!(expected.contains(state), "{expected}");
    }
    drop(restored);
    for _ in 0..40 {
        let qp = client.qp(pd, cq);
        writeln!(expected, "{} {}", qp.qpn, qp.handle).unwrap();
    }
    fs::write(dir.path().join("expected"), expected).unwrap();
    run_in_a_fresh_process(NAME, DUMP, dir.path());
}

#[test]
fn a_damaged_dump_is_refused_with_its_place() {
    let daemon = TestDaemon::start(CORES as u16);
    let mut client = daemon.client();
    let (pd, cq) = (client.pd(), client.cq());
    let qp = client.qp(pd, cq);
    let gone = client.qp(pd, cq).handle;
    client.destroy_counting(Op::DestroyQp, gone);
    let dir = tempfile::tempdir().unwrap();
    dump(&daemon, dir.path());
    let epoch = client.boot_epoch();
    let (mut refused, mut taken) = (0, 0);
    for (file, len) in [("0", 3 * 384), ("1", 6 * 64), ("2", 1024), ("3", 200), ("4", 320)] {
        let whole = fs::read(dir.path().join(file)).unwrap();
        for at in (0..56).chain((4096..4096 + len).step_by(3)) {
            let mut bytes = whole.clone();
            bytes[at] ^= 1 << (at % 8);
            fs::write(dir.path().join(file), &bytes).unwrap();
            match Restored::open(epoch, CORES, dumped(dir.path()), &mut Anew) {
                Ok(_) => taken += 1,
                Err(error) => {
                    let text = error.to_string();
                    assert!(text.contains("arena ") || text.contains("client"), "{text}");
                    refused += 1;
                }
            }
            assert!(at >= 56 || refused > 0, "byte {at} of the header of {file}");
        }
        fs::write(dir.path().join(file), &whole[..whole.len() - 1]).unwrap();
        let error = Restored::open(epoch, CORES, dumped(dir.path()), &mut Anew)
            .err()
            .unwrap();
        assert!(error.to_string().contains("cut short"), "{error}");
        fs::write(dir.path().join(file), &whole).unwrap();
    }
    assert!(
        refused > 150 && taken > 30,
        "{refused} refused, {taken} taken over"
    );
    assert!(
        Restored::open(epoch + 1, CORES, dumped(dir.path()), &mut Anew).is_err(),
        "another daemon's"
    );
    drop((qp, daemon));
}

/// Replies as they come over a socket: header and body, and how many descriptors.
fn reply(socket: &OwnedFd) -> (Vec<u8>, usize) {
    let mut packet = Packet::new();
    assert_eq!(socket::receive(socket, &mut packet), Received::Packet);
    (packet.bytes().to_vec(), packet.fds.len())
}

#[test]
fn a_session_goes_on_where_it_was_and_its_last_reply_can_be_had_again() {
    let daemon = TestDaemon::start(CORES as u16);
    let mut client = daemon.client();
    client.pd();
    let _stranger = daemon.stranger();
    let mut header = client.header(Op::CreateCompChannel, 0);
    client.send_raw(header.as_bytes(), &[]);
    let (first, body, fds) = client.receive().unwrap();
    assert_eq!((first.status, fds.len()), (0, 1));
    let dir = tempfile::tempdir().unwrap();
    dump(&daemon, dir.path());

    let mut restored = Restored::open(client.boot_epoch(), CORES, dumped(dir.path()), &mut Anew).unwrap();
    let (ours, theirs) = socket::pair().unwrap();
    let again = || ours.try_clone().unwrap();
    let wrong = restored.session(header.session, again(), Vec::new()).unwrap_err();
    assert!(
        wrong.to_string().contains("1 descriptors (completion channel)"),
        "{wrong}"
    );
    let fds = vec![Arc::new(socket::pair().unwrap().1)];
    let mut session = restored.session(header.session, again(), fds).unwrap();
    assert!(restored.session(header.session, again(), Vec::new()).is_err());
    assert_eq!(
        (session.peer.pid, session.number()),
        (std::process::id() as i32, client.session)
    );
    assert_eq!(
        session.admit(&header, Op::CreateCompChannel),
        Ok(Admitted::Replayed)
    );
    assert_eq!(reply(&theirs), ([first.as_bytes(), &body].concat(), 1));
    header.sequence += 2;
    let skipped = session.admit(&header, Op::CreateCompChannel).unwrap_err();
    assert_eq!(skipped.errno(), rustix::io::Errno::ILSEQ);
    header.sequence -= 1;
    assert_eq!(session.admit(&header, Op::CreateCompChannel), Ok(Admitted::New));
}
