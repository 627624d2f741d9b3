//! A whole appliance is handed over: its arenas are dumped into files, and a fresh process image rebuilds registry and
//! data path from them, finds everything as it was, and goes on (DESIGN I13).

use std::{
    collections::BTreeMap,
    env,
    fs::{self, File, OpenOptions},
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::fs::FileExt,
    },
    path::Path,
    sync::{Arc, atomic::Ordering},
};

use rnic_abi::*;
use rnic_engine::{
    Engine, EngineImage, Regions,
    command::{self, Token},
    core::ClientDoorbells,
    mem::ClientMem,
    view,
};
use rustix::io::{FdFlags, fcntl_setfd};
use serde::{Deserialize, Serialize};
use zerocopy::{FromBytes, IntoBytes};

use crate::{
    events::EventRing,
    handover::Image,
    objects::{IdKind, What},
    restore::{Resources, Restored},
    session::Admitted,
    socket,
    testing::*,
    tests::hostile::{forge_tail, ring, ring_queue},
    tests::srq::{create as create_srq, limit, qp_on},
    tests::window::bind,
    tests::xrc::{connect_target, open_qp, open_xrcd, target, xrc_srq},
};

const CORES: u16 = 2;
/// Tells the test binary that it is the fresh process, and where the dump lies.
const DUMP: &str = "RNIC_TEST_HANDOVER";
const NAME: &str =
    "tests::handover::a_fresh_process_rebuilds_the_whole_appliance_and_finishes_what_was_under_way";

/// What a client knows, or keeps open, that no arena has.
#[derive(Default, Serialize, Deserialize)]
struct Known {
    /// Descriptors of the regions, by index of the client, and of memory, by key.
    regions: BTreeMap<u32, i32>,
    memory: BTreeMap<u32, i32>,
    /// Sessions with the sequence of the last request, what it was, and the descriptors that its reply brought.
    sessions: Vec<(u64, u64, u16, usize)>,
    /// The QP that sends, its CQ, the one that will receive, and its CQ.
    sender: (Vec<u8>, u64),
    receiver: (Vec<u8>, u64),
    /// Handle of the QP whose event was not taken.
    eventful: u32,
    /// The key of a bound memory window, its region's, and the QP that it was bound on.
    window: [u32; 3],
}

/// The clients, and what they have open.
struct Appliance {
    clients: Vec<Client>,
    memory: Vec<(u32, OwnedFd)>,
    _open: Vec<OwnedFd>,
    known: Known,
}

fn connect(client: &mut Client, qp: &CreateQpReply, to: &str, peer: u32) {
    client.make_init(qp.handle);
    client.make_rtr(qp.handle, to, peer).unwrap();
    // Half a second: a frame that was on its way is lost and sent again, by whoever is there then.
    client.make_rts_with(qp.handle, 17);
}

/// Writes the first WQE of a queue.
fn write_wqe(client: &Client, offset: u64, wqe: Wqe) {
    let at = offset as usize + RING_ENTRIES;
    assert!(client.context().region.write(at, &wqe));
}

/// Completions that a CQ has had on the core of a QP.
fn completions(client: &Client, qp: &CreateQpReply, cq: u64) -> u32 {
    let at = cq as usize + cq_subring_offset(64, qp.doorbell_block) + RingIndices::TAIL;
    client.context().region.u32(at).unwrap().load(Ordering::Acquire)
}

/// Two clients that talk to each other, one that was refused what it asked for last, one that has not said hello.
/// Another one has come and gone.
fn populate(socket: &Path) -> Appliance {
    let client = || {
        let mut client = Client::connect(socket);
        client.hello();
        client
    };
    let mut clients = vec![client(), client(), client(), client()];
    let (mut memory, mut open, mut known) = (Vec::new(), Vec::new(), Known::default());
    let mut passing = clients.pop().unwrap();
    let pd = passing.pd();
    let cq = passing.cq();
    for _ in 0..5 {
        passing.qp(pd, cq);
    }
    passing.try_ah(pd, 0, av("10.0.0.2")).unwrap();
    drop(passing);

    let [a, b, c] = &mut clients[..] else {
        unreachable!()
    };
    // The receiver is on the other device.
    let their_pd = b.try_pd_on(1).unwrap();
    let their_cq = b.try_cq_on(1, 64, 0).unwrap();
    let receiver = b.qp(their_pd, their_cq.handle);

    let pd = a.pd();
    let (channel, end) = a.channel();
    open.push(end);
    let cq = a.try_cq(64, channel).unwrap();
    let sender = a.qp(pd, cq.handle);
    connect(a, &sender, "10.0.0.2", receiver.qpn);
    connect(b, &receiver, "10.0.0.1", sender.qpn);
    // In RESET, in INIT, and two in ERR: the event of the first one is taken.
    let other = a.cq();
    let qps: Vec<_> = (0..4).map(|_| a.qp(pd, other)).collect();
    a.make_init(qps[1].handle);
    for (qp, taken) in [(&qps[2], true), (&qps[3], false)] {
        connect(a, qp, "10.0.0.2", receiver.qpn);
        forge_tail(a, qp);
        if taken {
            assert_eq!(a.event(0), (qp.handle, event_kind::QP_FATAL));
        } else {
            a.await_events(2);
        }
    }
    known.eventful = qps[3].handle;
    // An SRQ whose limit is armed, with a receive and a QP on it.
    let srq = create_srq(a, pd, 16, 1).unwrap();
    let tail = a.context().region.u32(srq.offset as usize + RingIndices::TAIL);
    tail.unwrap().store(1, Ordering::Release);
    limit(a, srq.handle, srq_mask::LIMIT, 1).unwrap();
    qp_on(a, pd, other, srq.handle).unwrap();
    // A domain of two clients, with an XRC SRQ, and a target QP that both hold.
    let file = sealed_memfd(1);
    let ours = open_xrcd(a, 0, xrcd_flags::CREATE, &file).unwrap();
    let theirs = open_xrcd(b, 0, 0, &file).unwrap();
    xrc_srq(a, ours.handle, pd, other).unwrap();
    let target = target(a, ours.handle).unwrap();
    open_qp(b, theirs.handle, target.qpn).unwrap();
    connect_target(a, target.handle, "10.0.0.2", receiver.qpn);
    // A CQ that is moderated, and whose client has not read yet what a resize has left in the old place.
    let moderated = ModifyCq {
        handle: other,
        count: 3,
        period: 50,
    };
    a.call::<Empty>(Op::ModifyCq, &moderated).unwrap();
    let resized = ResizeCq {
        handle: other,
        depth: 256,
    };
    a.call::<ResizeCqReply>(Op::ResizeCq, &resized).unwrap();
    for (client, pd) in [(&mut *a, pd), (&mut *b, their_pd)] {
        let file = sealed_memfd(64 << 10);
        let arg = RegMr {
            pd,
            access: 0x17,
            fd_offset: 8192,
            length: 16384,
            iova: 0x7000_0000,
        };
        let (mr, _) = client.call_with::<RegMrReply>(Op::RegMr, &arg, &[&file]).unwrap();
        memory.push((mr.rkey, file));
    }
    // Two windows, of which one is bound.
    let binding_cq = a.try_cq(64, 0).unwrap();
    let binder = a.connected_qp(pd, binding_cq.handle);
    a.make_rts(binder.handle);
    let [_, window] = [1, 2].map(|mw_type| {
        let arg = AllocMw { pd, mw_type };
        a.call::<AllocMwReply>(Op::AllocMw, &arg).unwrap()
    });
    let region = memory[0].0;
    write_wqe(
        a,
        binder.sq_offset,
        bind(window.rkey | 5, region, 0x7000_0000, 4096),
    );
    ring(a, &binder, 1);
    wait_for(|| completions(a, &binder, binding_cq.offset) == 1);
    known.window = [window.rkey | 5, region, binder.qpn];
    let gone = a.try_ah(pd, 0, av("10.0.0.2")).unwrap();
    a.try_ah(pd, 0, av("10.0.0.2")).unwrap();
    a.try_ah(pd, ah_flags::NON_BLOCKING, av("10.0.0.2")).unwrap();
    a.destroy(Op::DestroyAh, gone.handle).unwrap();
    // A SEND that nobody receives yet.
    let mut send: Wqe = zerocopy::FromZeros::new_zeroed();
    (send.wr_id, send.opcode, send.flags, send.units) = (41, 2, wqe_flags::SIGNALED, 1);
    write_wqe(a, sender.sq_offset, send);
    ring(a, &sender, 1);

    a.channel();
    known
        .sessions
        .push((a.session, a.sequence, Op::CreateCompChannel as u16, 1));
    known.sessions.push((b.session, b.sequence, Op::RegMr as u16, 0));
    c.pd();
    c.destroy(Op::DestroyQp, 77).unwrap_err();
    known
        .sessions
        .push((c.session, c.sequence, Op::DestroyQp as u16, 0));
    known.sender = (sender.as_bytes().to_vec(), cq.offset);
    known.receiver = (receiver.as_bytes().to_vec(), their_cq.offset);
    open.push(Client::connect(socket).socket);
    Appliance {
        clients,
        memory,
        _open: open,
        known,
    }
}

/// A quiesced appliance, handed over.
fn hand_over() -> (Image, Appliance) {
    let mut held = HeldControl::with(CORES, LIMITS);
    let mut appliance = held.serve(populate);
    held.run_until(|control| control.connections.len() == 4 && control.ops.iter().next().is_none());
    let image = held.hand_over();
    let inherit = |fd: BorrowedFd<'_>| {
        fcntl_setfd(fd, FdFlags::empty()).unwrap();
        fd.as_raw_fd()
    };
    for (index, client) in (0..).zip(&appliance.clients) {
        let fd = inherit(client.context().memfd.as_fd());
        appliance.known.regions.insert(index, fd);
    }
    for (key, file) in &appliance.memory {
        appliance.known.memory.insert(*key, inherit(file.as_fd()));
    }
    (image, appliance)
}

/// The arenas' files, those of the registry first.
fn arenas(image: &Image) -> impl Iterator<Item = &OwnedFd> {
    let engine = image.engine.cores.iter().flatten();
    let engine = engine.chain([&image.engine.mrs, &image.engine.ahs]);
    image.registry.iter().chain(engine)
}

fn bytes_of(fd: &OwnedFd) -> Vec<u8> {
    let file = File::from(fd.try_clone().unwrap());
    let mut bytes = vec![0; file.metadata().unwrap().len() as usize];
    file.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

fn dump(image: &Image, known: &Known, dir: &Path) {
    for (i, fd) in arenas(image).enumerate() {
        fs::write(dir.join(i.to_string()), bytes_of(fd)).unwrap();
    }
    fs::write(dir.join("known"), serde_json::to_vec(known).unwrap()).unwrap();
    fs::write(dir.join("epoch"), image.engine.boot_epoch.to_string()).unwrap();
    fs::write(dir.join("registry"), image.inventory.join("\n")).unwrap();
    fs::write(dir.join("engine"), image.engine.inventory.join("\n")).unwrap();
}

fn dumped(dir: &Path) -> Image {
    let lines = |name: &str| {
        let text = fs::read_to_string(dir.join(name)).unwrap();
        text.lines().map(str::to_owned).collect::<Vec<_>>()
    };
    let mut count = 0;
    let mut next = || -> OwnedFd {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(dir.join(count.to_string()));
        count += 1;
        file.unwrap().into()
    };
    Image {
        registry: std::array::from_fn(|_| next()),
        engine: EngineImage {
            boot_epoch: lines("epoch")[0].parse().unwrap(),
            cores: (0..CORES).map(|_| std::array::from_fn(|_| next())).collect(),
            mrs: next(),
            ahs: next(),
            inventory: lines("engine"),
        },
        inventory: lines("registry"),
    }
}

/// The clients' memory, mapped anew; sockets of this process.
struct Anew<'a> {
    known: &'a Known,
    regions: BTreeMap<u32, Arc<ClientMem>>,
    /// For the data path, which does not own what it uses.
    mappings: BTreeMap<u32, ClientMem>,
}

impl<'a> Anew<'a> {
    fn new(known: &'a Known) -> Self {
        let map = |(index, fd): (&u32, &i32)| {
            let fd = opened(*fd);
            let len = rustix::fs::fstat(&fd).unwrap().st_size as u64;
            let region = ClientMem::map(fd.as_fd(), 0, len, Arc::default()).unwrap();
            (*index, Arc::new(region))
        };
        let mapping = |(key, fd): (&u32, &i32)| (*key, memory(*fd, 8192, 16384).unwrap());
        Anew {
            known,
            regions: known.regions.iter().map(map).collect(),
            mappings: known.memory.iter().map(mapping).collect(),
        }
    }
}

/// A descriptor of this process, or inherited by it.
fn opened(fd: i32) -> OwnedFd {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(format!("/proc/self/fd/{fd}"));
    file.unwrap().into()
}

fn memory(fd: i32, offset: u64, length: u64) -> Option<ClientMem> {
    ClientMem::map(opened(fd).as_fd(), offset, length, Arc::default()).ok()
}

fn an_end() -> Option<Arc<OwnedFd>> {
    socket::pair().ok().map(|pair| Arc::new(pair.0))
}

impl Resources for Anew<'_> {
    fn mapping(&mut self, key: u32, offset: u64, length: u64) -> Option<ClientMem> {
        memory(*self.known.memory.get(&key)?, offset, length)
    }

    fn channel(&mut self, _client: u32, _handle: u32) -> Option<Arc<OwnedFd>> {
        an_end()
    }
}

impl Regions for Anew<'_> {
    fn region(&self, client: u32) -> Option<Arc<ClientMem>> {
        self.regions.get(&client).cloned()
    }

    fn mapping(&self, key: u32) -> Option<&ClientMem> {
        self.mappings.get(&key)
    }

    fn channel(&self, _client: u32, _handle: u32) -> Option<Arc<OwnedFd>> {
        an_end()
    }
}

/// Hands the clients' doorbells to the cores, and makes clients that can ring them.
fn admit(engine: &mut Engine, restored: &Restored, anew: &Anew<'_>) -> Result<Vec<Client>, String> {
    let mut clients = Vec::new();
    for (index, found) in &restored.clients {
        let (layout, region) = (found.record.layout(), anew.regions[index].clone());
        let mut wakes = Vec::new();
        for core in 0..u32::from(CORES) {
            let (ours, theirs) = socket::pair().unwrap();
            wakes.push(theirs);
            let doorbells = ClientDoorbells::new(region.clone(), &layout, core, ours);
            let doorbells = doorbells.map_err(|error| format!("client {index}: {error}"))?;
            engine.submit(
                core as usize,
                command::Command::AddClient {
                    client: *index,
                    doorbells,
                    token: Token(0),
                },
            );
        }
        let (ours, events) = socket::pair().unwrap();
        // An event waits.
        socket::wake(&ours);
        let memfd = opened(anew.known.regions[index]);
        let region = ClientMem::map(memfd.as_fd(), 0, layout.size as u64, Arc::default());
        let region = region.map_err(|error| format!("client {index}: {error}"))?;
        clients.push(Client {
            socket: ours,
            session: 0,
            sequence: 0,
            context: Some(Context {
                layout,
                region,
                memfd,
                events,
                wakes,
            }),
        });
    }
    Ok(clients)
}

/// What the fresh process must find, and that it goes on.
fn check(dir: &Path) {
    let known: Known = serde_json::from_slice(&fs::read(dir.join("known")).unwrap()).unwrap();
    let mut anew = Anew::new(&known);
    let Image {
        engine: image,
        registry,
        inventory,
    } = dumped(dir);
    let lines = image.inventory.clone();
    let mut restored = Restored::open(image.boot_epoch, CORES.into(), registry, &mut anew).unwrap();
    assert_eq!(restored.inventory(), inventory);
    let (mut engine, inheritance) = Engine::resume(next_engine(CORES, LIMITS), image).unwrap();
    // Each AH and each key is one that an object of the registry has.
    for ah in inheritance.ahs() {
        let number = IdKind::Number(view::Kind::Ah);
        assert!(restored.objects.find(number, ah.number).is_some(), "{ah:?}");
    }
    for (key, record) in inheritance.keys() {
        if record.is_window() {
            let window = restored.objects.find(IdKind::Number(view::Kind::Mw), key >> 8);
            assert!(window.is_some(), "{key:#x} is no window's");
            continue;
        }
        let found = restored.objects.find(IdKind::Number(view::Kind::Mr), key >> 8);
        let What::Mr(mr) = &restored.objects.peek(found.unwrap()).unwrap().what else {
            panic!("{key:#x} is no MR's");
        };
        let part = (mr.part.iova, mr.length, mr.part.access);
        assert_eq!(part, (record.iova, record.len, record.access));
    }
    let clients = admit(&mut engine, &restored, &anew).unwrap();
    let rebuilt = engine.rebuild(inheritance, &anew).unwrap();
    assert_eq!(rebuilt.inventory(), lines);
    engine.adopt(rebuilt);
    restored.take_over();
    let [key, region, qpn] = known.window;
    let binding = engine.mrs().binding(key >> 8).unwrap();
    assert_eq!(
        (binding.key, binding.region, binding.qpn),
        (key, region, Some(qpn))
    );
    assert_eq!((binding.addr, binding.len), (0x7000_0000, 4096));
    assert!(!engine.mrs().close(region), "it holds its region");

    // Who asks for its last reply again gets it.
    for (number, sequence, op, fds) in &known.sessions {
        let (ours, theirs) = socket::pair().unwrap();
        let fds = (0..*fds).map(|_| an_end().unwrap()).collect();
        let mut session = restored.session(*number, ours, fds).unwrap();
        let op = Op::from_u16(*op).unwrap();
        let header = RequestHeader {
            magic: CONTROL_MAGIC,
            version: ABI_VERSION as u16,
            op: op as u16,
            session: *number,
            sequence: *sequence,
            body_len: 0,
            reserved: 0,
        };
        assert_eq!(session.admit(&header, op), Ok(Admitted::Replayed));
        let mut packet = socket::Packet::new();
        assert_eq!(socket::receive(&theirs, &mut packet), socket::Received::Packet);
        let (reply, _) = ReplyHeader::read_from_prefix(packet.bytes()).unwrap();
        assert_eq!((reply.sequence, reply.op), (*sequence, op as u32));
        assert_eq!(reply.status != 0, op == Op::DestroyQp);
    }

    // The event that was not taken is taken, and the next one stands behind it.
    let a = &clients[0];
    assert_eq!(a.event(1), (known.eventful, event_kind::QP_FATAL));
    let events = EventRing::new(a.context().layout);
    let tail = &mut restored.clients.get_mut(&0).unwrap().record.event_tail;
    let region = &a.context().region;
    let handle = Handle(known.eventful);
    let raised = events.raise(region, tail, handle, event_kind::COMM_EST, &Cause::default());
    assert!(raised.unwrap().wake);
    assert_eq!(a.event(2), (known.eventful, event_kind::COMM_EST));

    // And the SEND arrives.
    let [sender, receiver] =
        [&known.sender, &known.receiver].map(|(qp, cq)| (CreateQpReply::read_from_bytes(qp).unwrap(), *cq));
    assert_eq!(completions(a, &sender.0, sender.1), 0);
    let mut recv: Wqe = zerocopy::FromZeros::new_zeroed();
    (recv.wr_id, recv.units) = (42, 1);
    let b = &clients[1];
    write_wqe(b, receiver.0.rq_offset, recv);
    ring_queue(b, &receiver.0, receiver.0.rq_offset, 1);
    wait_for(|| {
        engine.poll(|_, _| {});
        completions(a, &sender.0, sender.1) == 1 && completions(b, &receiver.0, receiver.1) == 1
    });
    engine.stop();
}

#[test]
fn a_fresh_process_rebuilds_the_whole_appliance_and_finishes_what_was_under_way() {
    if let Some(dir) = env::var_os(DUMP) {
        return check(Path::new(&dir));
    }
    let (image, appliance) = hand_over();
    // Of each kind and state something is there.
    for has in [
        "kind: Pd",
        "kind: Mr",
        "kind: Channel",
        "kind: Cq",
        "kind: Qp",
        "kind: Ah",
        "kind: Srq",
        "state: Reset",
        "state: Init",
        "state: Rts",
        "state: Err",
        "reported: 1",
        "event_tail: 2",
        "client: None",
    ] {
        assert!(image.inventory.iter().any(|line| line.contains(has)), "{has}");
    }
    let ahs = image
        .engine
        .inventory
        .iter()
        .filter(|line| line.starts_with("AH "))
        .count();
    assert_eq!(ahs, 2);
    let dir = tempfile::tempdir().unwrap();
    dump(&image, &appliance.known, dir.path());
    drop(image);
    run_in_a_fresh_process(NAME, DUMP, dir.path());
}

/// Takes over what was dumped, as far as that is possible, and lets it run.
fn take_over(dir: &Path, known: &Known) -> Result<bool, String> {
    let mut anew = Anew::new(known);
    let Image {
        engine: image,
        registry,
        ..
    } = dumped(dir);
    let restored = Restored::open(image.boot_epoch, CORES.into(), registry, &mut anew);
    let mut restored = restored.map_err(|error| error.to_string())?;
    let resumed = Engine::resume(next_engine(CORES, LIMITS), image);
    let (mut engine, inheritance) = resumed.map_err(|error| error.to_string())?;
    if let Err(error) = admit(&mut engine, &restored, &anew) {
        engine.stop();
        return Err(error);
    }
    match engine.rebuild(inheritance, &anew) {
        Ok(rebuilt) => drop(engine.adopt(rebuilt)),
        Err(error) => {
            engine.stop();
            return Err(error.to_string());
        }
    }
    restored.take_over();
    for _ in 0..200 {
        engine.poll(|_, _| {});
        std::thread::yield_now();
    }
    let healthy = engine.is_healthy();
    engine.stop();
    Ok(healthy)
}

#[test]
fn a_byte_changed_in_any_arena_is_refused_with_its_place_or_taken_over_without_harm() {
    let (image, appliance) = hand_over();
    let dir = tempfile::tempdir().unwrap();
    dump(&image, &appliance.known, dir.path());
    let whole: Vec<_> = arenas(&image).map(bytes_of).collect();
    let mut seed = 0x2545_f491_4f6c_dd1du64;
    let mut random = move || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed
    };
    let (mut refused, mut taken) = (0, 0);
    for round in 0..15 * 8 {
        let file = round % whole.len();
        let path = dir.path().join(file.to_string());
        let mut bytes = whole[file].clone();
        // Where there are records, which is where something else than zero is.
        let used: Vec<usize> = (0..bytes.len()).filter(|at| bytes[*at] != 0).collect();
        let near = used[random() as usize % used.len()] + random() as usize % 4;
        let at = near.min(bytes.len() - 1);
        bytes[at] ^= 1 << (random() % 8);
        fs::write(&path, &bytes).unwrap();
        match take_over(dir.path(), &appliance.known) {
            Ok(healthy) => {
                assert!(healthy, "a poll core broke down: file {file}, byte {at}");
                taken += 1;
            }
            Err(text) => {
                let says = ["arena ", "client", "key"].iter().any(|word| text.contains(word));
                assert!(says, "file {file}, byte {at}: {text}");
                refused += 1;
            }
        }
        // What was taken over was written to.
        for (i, bytes) in whole.iter().enumerate() {
            fs::write(dir.path().join(i.to_string()), bytes).unwrap();
        }
    }
    assert!(
        refused > 15 && taken > 15,
        "{refused} refused, {taken} taken over"
    );
}
