//! The data path's state outlives its process: arenas are handed over under load, a fresh process image rebuilds
//! everything from them and goes on (DESIGN I13).
mod common;

use std::{
    collections::BTreeMap,
    env,
    fs::File,
    io::Write,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
        unix::fs::FileExt,
    },
    process::Command,
    sync::Arc,
    time::{Duration, Instant},
};

use common::{KEY, PD, Rig, path, wqe};
use rnic_abi::{AtomicOperands, RegionLayout, Sge};
use rnic_engine::{
    Engine, EngineImage, Regions, ResumeError,
    command::Message,
    core::Idle,
    mem::{ClientMem, FaultCell},
    nonblocking::CheckedAllocator,
    port::{HeapPool, OpenPort, ring_pair},
    view::number,
};
use rnic_transport::QpState;
use rnic_wire::Mtu;
use rustix::{
    fs::{MemfdFlags, fstat, memfd_create},
    io::{FdFlags, fcntl_setfd},
};

#[global_allocator]
static ALLOCATOR: CheckedAllocator = CheckedAllocator;

const WRITE: u8 = 0;
const SEND: u8 = 2;
const READ: u8 = 4;
const FETCH_ADD: u8 = 6;
/// The first two on different cores, the next two on one, and so the last two.
const SLOTS: [u32; 8] = [10, 11, 12, 14, 16, 17, 18, 20];
/// Of the SRQ that the last one draws from.
const SRQ: u32 = 3;
/// Tells the test binary that it is the fresh process.
const IMAGE: &str = "RNIC_TEST_IMAGE";

const MB: usize = 1 << 20;
const LEN: usize = 200_000;
const WRITES: u64 = 12;
/// The word that FETCH_ADDs of 1 work on; what they find goes behind it.
const WORD: usize = 3 * MB;
const ATOMICS: u64 = 30;

fn ports() -> Vec<OpenPort> {
    let (a, b) = ring_pair("rnic0", "rnic1", 2, 4200, HeapPool::for_mtu(2048, 4200));
    vec![a, b]
}

fn idle() -> Idle {
    Idle::Sleep {
        spin_for_ns: 200_000,
        max_sleep_ns: 1_000_000,
    }
}

fn layout() -> RegionLayout {
    RegionLayout::new(64, 2, 4 << 20)
}

/// QPs 0 and 1 over the wire, 2 and 3 without frames, 4 in RESET, 5 in error, 6 and 7 without frames, 7 on an SRQ.
fn appliance() -> Rig {
    let mut rig = Rig::with_idle(2, ports(), idle());
    // A quarter of a second: longer than a process takes to start.
    rig.timeout = 16;
    let srq = rig.create_srq(SRQ, 0, PD, 2);
    for slot in SLOTS {
        rig.create_qp_on(slot, (slot == SLOTS[7]).then_some(srq));
    }
    rig.connect(6, 7, path(7, 8, true), path(8, 7, true), Mtu::M4096);
    rig.connect(0, 1, path(1, 2, false), path(2, 1, false), Mtu::M1024);
    rig.connect(2, 3, path(3, 4, true), path(4, 3, true), Mtu::M4096);
    rig.connect_one(5, 4, path(5, 6, true), Mtu::M256);
    let (sq, handle, core) = (rig.qps[5].sq as usize, rig.qps[5].handle, rig.qps[5].core);
    rig.publish(sq, 1_000_000, handle, core);
    while rig.events.is_empty() {
        rig.poll();
        std::thread::yield_now();
    }
    for (slot, generation) in [(1, 2), (2, 1)] {
        assert!(
            rig.engine
                .ahs()
                .validate(number(slot, generation), PD, &path(1, slot as u8, false))
        );
    }
    // Some of everything was done before.
    let sge = rig.sge(0, 5000);
    let target = rig.sge(MB as u64, 5000);
    rig.post_recv(1, 1, &[target]);
    rig.post_send(0, wqe(1, SEND, sge, 0, 0));
    rig.post_send(0, wqe(2, READ, sge, MB as u64, rig.key));
    assert_eq!(
        (
            rig.wait_cqe(1).wr_id,
            rig.wait_cqe(0).wr_id,
            rig.wait_cqe(0).wr_id
        ),
        (1, 1, 2)
    );
    rig
}

/// A SEND that nobody receives yet, with WRITEs behind it; WRITEs, READs and atomics in full swing.
fn load(rig: &mut Rig) {
    rig.fill(0, LEN, 1);
    let sge = rig.sge(0, LEN as u32);
    rig.post_send(0, wqe(10, SEND, sge, 0, 0));
    rig.fill(4 * MB, LEN, 2);
    rig.fill(6 * MB, LEN, 3);
    for i in 0..WRITES {
        let (sge, there) = (rig.sge((4 * MB) as u64, LEN as u32), (5 * MB) as u64);
        rig.post_send(2, wqe(100 + i, WRITE, sge, there, rig.key));
        let (sge, there) = (rig.sge((7 * MB) as u64, LEN as u32), (6 * MB) as u64);
        rig.post_send(0, wqe(11 + i, [WRITE, READ][i as usize % 2], sge, there, rig.key));
    }
    // The first message has its receive; the limit of the second is reached when it is posted and taken.
    let target = rig.sge((3 * MB + LEN) as u64, LEN as u32);
    rig.post_srq_recv(0, 500, &[target]);
    for id in [600, 601] {
        rig.post_send(6, wqe(id, SEND, sge, 0, 0));
    }
    for i in 0..ATOMICS {
        let mut wqe = wqe(i, FETCH_ADD, found(rig, i), WORD as u64, rig.key);
        let (compare_add, swap) = (1, 0);
        wqe.sges[1] = AtomicOperands { compare_add, swap }.into();
        rig.post_send(1, wqe);
    }
}

/// Where the result of an atomic goes.
fn found(rig: &Rig, i: u64) -> Sge {
    rig.sge(WORD as u64 + 8 * (i + 1), 8)
}

/// What the load brings in the end: everything once, in order, byte for byte.
fn finish(rig: &mut Rig) {
    let target = rig.sge((2 * MB) as u64, LEN as u32);
    rig.post_recv(1, 77, &[target]);
    let mut got: Vec<_> = (0..=ATOMICS).map(|_| rig.wait_cqe(1)).collect();
    got.sort_by_key(|cqe| cqe.wr_id == 77);
    let received = got.pop().unwrap();
    assert_eq!(
        (received.wr_id, received.status, received.byte_len),
        (77, 0, LEN as u32)
    );
    assert_eq!(rig.bytes(2 * MB, LEN), rig.bytes(0, LEN));
    for (received, sent) in [(500, 600), (501, 601)] {
        let (got, done) = (rig.wait_cqe(7), rig.wait_cqe(6));
        assert_eq!((got.wr_id, got.status, got.byte_len), (received, 0, LEN as u32));
        assert_eq!((done.wr_id, done.status), (sent, 0));
        assert_eq!(rig.bytes(3 * MB + LEN, LEN), rig.bytes(0, LEN));
        rig.fill(3 * MB + LEN, LEN, 9);
        let target = rig.sge((3 * MB + LEN) as u64, LEN as u32);
        rig.post_srq_recv(0, received + 1, &[target]);
    }
    // Each atomic was executed once, and the addition it found is the one before it.
    assert_eq!(rig.bytes(WORD, 8), ATOMICS.to_ne_bytes());
    for (i, cqe) in (0..).zip(got) {
        assert_eq!((cqe.wr_id, cqe.status), (i, 0));
        assert_eq!(rig.bytes(found(rig, i).addr as usize, 8), i.to_ne_bytes());
    }
    for i in 0..=WRITES {
        let cqe = rig.wait_cqe(0);
        assert_eq!((cqe.wr_id, cqe.status), (10 + i, 0));
    }
    assert_eq!(rig.bytes(6 * MB, LEN), rig.bytes(7 * MB, LEN));
    for i in 0..WRITES {
        let cqe = rig.wait_cqe(2);
        assert_eq!((cqe.wr_id, cqe.status), (100 + i, 0));
    }
    assert_eq!(rig.bytes(5 * MB, LEN), rig.bytes(4 * MB, LEN));
    assert!(
        (0..8).all(|qp| rig.poll_cq(qp).is_none()),
        "completions nobody waits for"
    );
}

/// The client's memory, mapped anew.
struct Mapped([Arc<ClientMem>; 2]);

impl Mapped {
    fn new([region, data]: &[OwnedFd; 2]) -> Self {
        let map = |fd: &OwnedFd, len| {
            Arc::new(ClientMem::map(fd.as_fd(), 0, len as u64, Arc::<FaultCell>::default()).unwrap())
        };
        Mapped([map(region, layout().size), map(data, 8 * MB)])
    }
}

impl Regions for Mapped {
    fn region(&self, client: u32) -> Option<Arc<ClientMem>> {
        (client == 0).then(|| self.0[0].clone())
    }

    fn mapping(&self, key: u32) -> Option<&ClientMem> {
        (key == KEY).then_some(&*self.0[1])
    }

    fn channel(&self, _client: u32, _handle: u32) -> Option<Arc<OwnedFd>> {
        None
    }
}

/// Takes over; the inventory must be the one that was handed over.
fn take_over(image: EngineImage, files: [OwnedFd; 2]) -> Result<Rig, ResumeError> {
    let expected = image.inventory.clone();
    let (engine, inheritance) = Engine::resume(Rig::config(2, ports(), idle()), image)?;
    assert_eq!(inheritance.clients().into_iter().collect::<Vec<_>>(), [0]);
    let regions = Mapped::new(&files);
    let mut rig = Rig::over(engine, regions.0.clone(), layout(), files);
    rig.admit();
    let rebuilt = match rig.engine.rebuild(inheritance, &regions) {
        Ok(rebuilt) => rebuilt,
        Err(error) => {
            rig.engine.stop();
            return Err(error);
        }
    };
    assert_eq!(rebuilt.inventory(), expected);
    rig.engine.adopt(rebuilt);
    rig.find_srq(SRQ, 0, PD, 2);
    for slot in SLOTS {
        rig.find_qp(slot);
    }
    Ok(rig)
}

fn hand_over(rig: Rig) -> (EngineImage, [OwnedFd; 2]) {
    let Rig { engine, files, .. } = rig;
    (engine.hand_over().unwrap(), files)
}

/// Runs this test's binary anew, with the descriptors of the image and nothing else of this process.
fn in_a_fresh_process(test: &str, image: &EngineImage, files: &[OwnedFd; 2]) {
    let inherit = |fd: BorrowedFd<'_>| {
        fcntl_setfd(fd, FdFlags::empty()).unwrap();
        fd.as_raw_fd().to_string()
    };
    let all = image
        .cores
        .iter()
        .flatten()
        .chain([&image.mrs, &image.ahs])
        .chain(files);
    let fds: Vec<_> = all.map(|fd| inherit(fd.as_fd())).collect();
    let mut inventory = tempfile::NamedTempFile::new().unwrap();
    inventory
        .write_all(image.inventory.join("\n").as_bytes())
        .unwrap();
    let text = format!(
        "{} {} {}",
        inventory.path().display(),
        image.boot_epoch,
        fds.join(" ")
    );
    let output = Command::new(env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env(IMAGE, text)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && text.contains("1 passed"),
        "{text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// In the fresh process: what was inherited.
fn inherited() -> Option<(EngineImage, [OwnedFd; 2])> {
    let text = env::var(IMAGE).ok()?;
    let mut words = text.split(' ');
    let inventory = std::fs::read_to_string(words.next()?).unwrap();
    let boot_epoch = words.next()?.parse().unwrap();
    // SAFETY: the parent left these descriptors open for this process, and nobody else here knows of them.
    let mut fds = words.map(|fd| unsafe { OwnedFd::from_raw_fd(fd.parse().unwrap()) });
    let mut next = || fds.next().unwrap();
    let image = EngineImage {
        boot_epoch,
        cores: (0..2).map(|_| std::array::from_fn(|_| next())).collect(),
        mrs: next(),
        ahs: next(),
        inventory: inventory.lines().map(str::to_owned).collect(),
    };
    Some((image, [next(), next()]))
}

#[test]
fn a_fresh_process_rebuilds_everything_and_finishes_what_was_under_way() {
    if let Some((image, files)) = inherited() {
        let mut rig = take_over(image, files).unwrap();
        let states: Vec<_> = (0..6).map(|qp| rig.query(qp).attr.state).collect();
        use QpState::{Err, Reset, Rts};
        assert_eq!(states, [Rts, Rts, Rts, Rts, Reset, Err]);
        assert_eq!(rig.engine.ahs().resolve(number(1, 2), PD), Ok(path(1, 1, false)));
        finish(&mut rig);
        // What was in RESET goes on from there, and slots are free again once their objects are gone.
        let error = rig.query(5).cause;
        assert_eq!(error.check, rnic_transport::Check::SendQueue);
        for qp in 0..8 {
            rig.destroy_qp(qp);
        }
        let (image, _) = hand_over(rig);
        assert!(
            image.inventory.iter().all(|line| !line.contains("RcQp")),
            "{:?}",
            image.inventory
        );
        return;
    }
    for round in 0..4 {
        let mut rig = appliance();
        load(&mut rig);
        // At another moment each time; the last time nothing is on its way but the SEND that waits.
        let until = Instant::now() + Duration::from_micros([0, 300, 1500, 30_000][round]);
        while Instant::now() < until {
            std::hint::spin_loop();
        }
        let (image, files) = hand_over(rig);
        assert_eq!(
            image
                .inventory
                .iter()
                .filter(|line| line.contains("RcQp"))
                .count(),
            8
        );
        in_a_fresh_process(
            "a_fresh_process_rebuilds_everything_and_finishes_what_was_under_way",
            &image,
            &files,
        );
    }
}

#[test]
fn what_was_destroyed_is_not_handed_over_and_what_was_withdrawn_stays_invalid() {
    let mut rig = appliance();
    rig.destroy_qp(4);
    assert!(rig.engine.mrs().invalidate(KEY));
    assert!(rig.engine.ahs().invalidate(number(2, 1)));
    let (image, files) = hand_over(rig);
    assert_eq!(
        image
            .inventory
            .iter()
            .filter(|line| line.contains("RcQp"))
            .count(),
        7
    );
    assert!(!image.inventory.iter().any(|line| line.contains("MrRecord")));
    assert_eq!(
        image
            .inventory
            .iter()
            .filter(|line| line.starts_with("AH "))
            .count(),
        1
    );
    // The first QP has completed two requests: the second stands at position 1, and the record knows.
    let placed = "placed: Placed { send: 1, recv: 0 }";
    assert!(image.inventory.iter().any(|line| line.contains(placed)));
    drop(take_over_and_stop(image, files));
}

#[test]
fn an_event_that_nobody_has_heard_of_is_handed_over() {
    let mut rig = appliance();
    rig.events.clear();
    // A QP fails, and its core tells it to a control thread that never looks again.
    let (sq, handle, core) = (rig.qps[1].sq as usize, rig.qps[1].handle, rig.qps[1].core);
    rig.publish(sq, 1_000_000, handle, core);
    std::thread::sleep(Duration::from_millis(100));
    let qpn = rig.qps[1].qpn;
    let (image, files) = hand_over(rig);
    let (engine, inheritance) = Engine::resume(Rig::config(2, ports(), idle()), image).unwrap();
    let regions = Mapped::new(&files);
    let mut rig = Rig::over(engine, regions.0.clone(), layout(), files);
    let rebuilt = rig.engine.rebuild(inheritance, &regions).unwrap();
    let messages = rig.engine.adopt(rebuilt).into_iter();
    let mut events: Vec<_> = messages
        .filter_map(|(_, message)| match message {
            Message::Event(event) => Some(event),
            _ => None,
        })
        .collect();
    let until = Instant::now() + Duration::from_secs(5);
    while events.is_empty() && Instant::now() < until {
        rig.poll();
        events.append(&mut rig.events);
    }
    assert_eq!(events.len(), 1);
    assert_eq!((events[0].number, events[0].handle), (qpn, handle));
    assert_eq!(events[0].cause.check, rnic_transport::Check::SendQueue);
    rig.engine.stop();
}

fn take_over_and_stop(image: EngineImage, files: [OwnedFd; 2]) -> Result<bool, ResumeError> {
    let rig = take_over_slots(image, files)?;
    let healthy = rig.engine.is_healthy();
    rig.engine.stop();
    Ok(healthy)
}

/// Takes over whatever is there, lets it run for some passes.
fn take_over_slots(image: EngineImage, files: [OwnedFd; 2]) -> Result<Rig, ResumeError> {
    let (engine, inheritance) = Engine::resume(Rig::config(2, ports(), idle()), image)?;
    let regions = Mapped::new(&files);
    let mut rig = Rig::over(engine, regions.0.clone(), layout(), files);
    match rig.engine.rebuild(inheritance, &regions) {
        Ok(rebuilt) => {
            rig.engine.adopt(rebuilt);
            let until = Instant::now() + Duration::from_millis(2);
            while Instant::now() < until {
                rig.poll();
            }
            Ok(rig)
        }
        Err(error) => {
            rig.engine.stop();
            Err(error)
        }
    }
}

/// A copy of a file, with one byte changed.
fn copy(fd: &OwnedFd, change: Option<(u64, u8)>) -> OwnedFd {
    let from: File = fd.try_clone().unwrap().into();
    let to: File = memfd_create("copy", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)
        .unwrap()
        .into();
    let mut bytes = vec![0; fstat(fd).unwrap().st_size as usize];
    from.read_exact_at(&mut bytes, 0).unwrap();
    if let Some((at, bit)) = change {
        bytes[at as usize] ^= bit;
    }
    to.write_all_at(&bytes, 0).unwrap();
    to.into()
}

#[test]
fn a_damaged_image_is_refused_with_its_place_or_taken_over_without_harm() {
    let mut rig = appliance();
    load(&mut rig);
    let (image, files) = hand_over(rig);
    let data: BTreeMap<usize, u64> = [
        (0, 6 * 704),
        (1, 6 * 1400),
        (2, 6 * 192),
        (3, 56),
        (4, 3 * 4096),
        (10, 4096),
        (11, 3 * 128),
    ]
    .into();
    let mut seed = 0x9e37_79b9_7f4a_7c15u64;
    let mut random = move || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed
    };
    let (mut refused, mut taken) = (0, 0);
    for _ in 0..100 {
        let which = [0, 0, 0, 1, 2, 3, 4, 10, 11][random() as usize % 9];
        let at = match random() % 8 {
            0 => random() % 56,
            _ => 4096 + random() % data[&which],
        };
        let bit = 1 << (random() % 8);
        let change = |file| (file == which).then_some((at, bit));
        let all: Vec<_> = image
            .cores
            .iter()
            .flatten()
            .chain([&image.mrs, &image.ahs])
            .collect();
        let mut copies = all.iter().enumerate().map(|(i, fd)| copy(fd, change(i)));
        let mut next = || copies.next().unwrap();
        let damaged = EngineImage {
            boot_epoch: image.boot_epoch,
            cores: (0..2).map(|_| std::array::from_fn(|_| next())).collect(),
            mrs: next(),
            ahs: next(),
            inventory: Vec::new(),
        };
        let files = [copy(&files[0], None), copy(&files[1], None)];
        for fd in &files {
            rustix::fs::fcntl_add_seals(fd, rustix::fs::SealFlags::SHRINK).unwrap();
        }
        match take_over_and_stop(damaged, files) {
            Ok(healthy) => {
                assert!(
                    healthy,
                    "a poll core broke down: file {which}, byte {at}, bit {bit}"
                );
                taken += 1;
            }
            Err(error) => {
                let text = error.to_string();
                assert!(
                    text.contains("arena ") || text.contains("client") || text.contains("key"),
                    "{text}"
                );
                refused += 1;
            }
        }
    }
    assert!(refused > 5 && taken > 5, "{refused} refused, {taken} taken over");
}
