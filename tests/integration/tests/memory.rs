//! Memory that is not what it should be: descriptors that are no sealed memfds, ranges that wrap, pages that go
//! away while they are read and written.
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rnic_tests::probe::Rng;
use rnic_tests::raw::{Memory, Verbs, anonymous, memfd, pair, punch, write};
use rnic_tests::{Hugepages, Scene, Turn, poll_until};
use rustix::fs::SealFlags;

const SEALED: SealFlags = SealFlags::SHRINK;

#[test]
fn only_a_memfd_sealed_against_shrinking_can_be_registered() {
    let _turn = Turn::take();
    let scene = Scene::new();
    let mut verbs = Verbs::open(&scene.socket, 0, 16);
    let before = scene.appliance.counts();
    let dir = tempfile::tempdir().unwrap();
    let regular = File::create(dir.path().join("file")).unwrap();
    regular.set_len(8192).unwrap();
    let (pipe, _other_end) = rustix::pipe::pipe().unwrap();
    let (socket, _peer) = std::os::unix::net::UnixStream::pair().unwrap();
    let good = memfd(8192, SEALED, false).unwrap();
    let read_only: OwnedFd = File::open(format!("/proc/self/fd/{}", {
        use std::os::fd::AsRawFd;
        good.as_raw_fd()
    }))
    .unwrap()
    .into();
    let cases: Vec<(&str, OwnedFd)> = vec![
        ("a regular file", regular.into()),
        ("a pipe", pipe),
        ("a socket", socket.into()),
        ("a folder", File::open(dir.path()).unwrap().into()),
        (
            "/dev/null",
            File::options()
                .read(true)
                .write(true)
                .open("/dev/null")
                .unwrap()
                .into(),
        ),
        (
            "/dev/zero",
            File::options()
                .read(true)
                .write(true)
                .open("/dev/zero")
                .unwrap()
                .into(),
        ),
        (
            "a memfd that can shrink",
            memfd(8192, SealFlags::empty(), false).unwrap(),
        ),
        (
            "a memfd sealed against growing only",
            memfd(8192, SealFlags::GROW, false).unwrap(),
        ),
        (
            "a memfd sealed against writing",
            memfd(8192, SEALED | SealFlags::WRITE, false).unwrap(),
        ),
        ("a memfd that is too short", memfd(4096, SEALED, false).unwrap()),
        ("an empty memfd", memfd(0, SEALED, false).unwrap()),
        ("a memfd opened for reading", read_only),
        (
            "the control socket itself",
            verbs.line.as_fd().try_clone_to_owned().unwrap(),
        ),
    ];
    for (what, file) in cases {
        let reply = verbs.reg_mr(&file, 0, 8192, 0x10000);
        assert_ne!(reply.errno(), 0, "{what} was registered");
        assert!(
            reply.text().len() > 10,
            "{what}: {:?} explains nothing",
            reply.text()
        );
        println!("{what}: {}", reply.text());
    }
    assert_eq!(
        scene.appliance.counts(),
        before,
        "a refused registration left something"
    );
    verbs.mr(&good, 8192, 0x10000);
    drop(verbs);
    scene.end();
}

#[test]
fn ranges_that_wrap_or_leave_the_file_are_refused() {
    let _turn = Turn::take();
    let scene = Scene::new();
    let mut verbs = Verbs::open(&scene.socket, 0, 16);
    let file = memfd(16384, SEALED, false).unwrap();
    let cases = [
        ("an empty range", 0, 0, 0),
        ("an offset inside a page", 100, 4096, 0),
        ("an end past the file's", 12288, 8192, 0),
        ("an offset past the file's end", 1 << 40, 4096, 0),
        ("an end that wraps", u64::MAX - 4095, 8192, 0),
        ("the largest length", 0, u64::MAX, 0),
        ("the largest everything", u64::MAX, u64::MAX, u64::MAX),
        ("addresses that wrap", 0, 8192, u64::MAX - 4095),
        ("addresses that wrap by one", 0, 8192, u64::MAX - 8190),
    ];
    for (what, offset, length, iova) in cases {
        let reply = verbs.reg_mr(&file, offset, length, iova);
        assert_ne!(reply.errno(), 0, "{what} was registered");
        assert!(
            reply.text().len() > 10,
            "{what}: {:?} explains nothing",
            reply.text()
        );
    }
    // The last addresses there are can be used, but for the very last: an end must be an address, too.
    verbs.mr(&file, 8192, u64::MAX - 8192);
    drop(verbs);
    scene.end();
}

#[test]
fn holes_punched_under_traffic_read_as_zeros_and_hurt_nobody() {
    let _turn = Turn::take();
    let scene = Scene::new();
    const LEN: usize = 1 << 20;
    let [(mut a, qa), (mut b, _qb)] = pair(&scene.socket, 16);
    let [source, target] = [0, 1].map(|_| memfd(LEN as u64, SEALED, false).unwrap());
    let (from, to) = (a.mr(&source, LEN as u64, 0), b.mr(&target, LEN as u64, 0));
    let [ours, theirs] = [&source, &target].map(|file| Memory::map(file, LEN).unwrap());
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut rng = Rng::new(&[8]);
            while !stop.load(Ordering::Relaxed) {
                let file = if rng.below(2) == 0 { &source } else { &target };
                let start = rng.below(LEN / 4096) as u64 * 4096;
                punch(file, start, (LEN as u64 - start).min(4096 << rng.below(6))).unwrap();
                ours.write(start as usize, &[1; 64]);
            }
        });
        for i in 0..60 {
            a.post(&qa, qa.sq, &write(i, 0, LEN as u32, from.lkey, 0, to.rkey));
            let done = a.completion();
            assert_eq!((done.wr_id, done.status), (i, 0), "{done:?}");
        }
        stop.store(true, Ordering::Relaxed);
    });
    let data = Rng::new(&[9]).bytes(LEN);
    ours.write(0, &data);
    a.post(&qa, qa.sq, &write(99, 0, LEN as u32, from.lkey, 0, to.rkey));
    assert_eq!(a.completion().status, 0);
    let mut seen = vec![0; LEN];
    theirs.read(0, &mut seen);
    assert!(seen == data, "memory without holes is exact again");
    drop((a, b));
    scene.end();
}

#[test]
fn a_huge_page_taken_away_under_traffic_ends_its_owner_and_nobody_else() {
    const PAGE: u64 = 2 << 20;
    let _turn = Turn::take();
    let name = "a_huge_page_taken_away_under_traffic";
    let Some(_pool) = Hugepages::reserve(name, 1) else {
        return;
    };
    let mut scene = Scene::new();
    let ordinary = memfd(PAGE, SEALED, false).unwrap();
    // The hole is where data comes from, then where it goes to.
    for hole_at_source in [true, false] {
        let huge = memfd(PAGE, SEALED, true).unwrap();
        let [(mut a, qa), (mut b, _qb)] = pair(&scene.socket, 16);
        let (source, target) = if hole_at_source {
            (&huge, &ordinary)
        } else {
            (&ordinary, &huge)
        };
        let (from, to) = (a.mr(source, PAGE, 0), b.mr(target, PAGE, 0));
        let transfer = |a: &mut Verbs, id| a.post(&qa, qa.sq, &write(id, 0, 1 << 20, from.lkey, 0, to.rkey));
        transfer(&mut a, 1);
        assert_eq!(a.completion().status, 0);

        punch(&huge, 0, PAGE).unwrap();
        let taken = anonymous(Hugepages::free()).expect("the page is free again");
        assert_eq!(Hugepages::free(), 0);
        transfer(&mut a, 2);
        // Whose memory it was is thrown out: its session ends.
        let owner = if hole_at_source { &a.line } else { &b.line };
        assert!(owner.receive().is_none(), "the owner of the hole was kept");
        scene.bystanders.check();
        scene.appliance.assert_alive();
        drop((a, b, taken, huge));
        scene.assert_clean();
        let page_is_back = poll_until(Duration::from_secs(5), || (Hugepages::free() > 0).then_some(()));
        assert!(page_is_back.is_some(), "the daemon keeps the page mapped");
    }
    scene.end();
}

#[test]
fn a_region_of_part_of_a_huge_page_is_unmapped_with_its_client() {
    const PAGE: u64 = 2 << 20;
    let _turn = Turn::take();
    let Some(_pool) = Hugepages::reserve("a_region_of_part_of_a_huge_page", 1) else {
        return;
    };
    let scene = Scene::new();
    for length in [1, 4096, PAGE - 1, PAGE] {
        let huge = memfd(PAGE, SEALED, true).unwrap();
        let mut verbs = Verbs::open(&scene.socket, 0, 16);
        verbs.mr(&huge, length, 0);
        drop((verbs, huge));
        let freed = poll_until(Duration::from_secs(5), || (Hugepages::free() > 0).then_some(()));
        assert!(
            freed.is_some(),
            "a page is held after a region of {length} bytes is gone"
        );
    }
    scene.end();
}
