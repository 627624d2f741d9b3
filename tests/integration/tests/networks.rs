//! Several addresses and VLANs of a port, and what an address vector puts into the headers, as seen on the wire.
use std::time::Duration;

use rnic::{Access, AddressVector, ConnectOptions, Context, Cq, Gid, Mr, Pd, Qp, QpConfig, QpType, Status};
use rnic_tests::{Appliance, PortSetup, Setup, Turn};
use rnic_wire::{Kind, Net, classify, udp_source_port};

const SOON: Option<Duration> = Some(Duration::from_secs(20));
const QKEY: u32 = 0x1111_1111;
/// What is asked for: DSCP 26.
const TRAFFIC_CLASS: u8 = 26 << 2;
const SL: u8 = 3;
const HOPS: u8 = 9;
const LABEL: u32 = 0x1_2345;

struct End {
    context: Context,
    pd: Pd,
    cq: Cq,
    qp: Qp,
    mr: Mr,
}

fn end(appliance: &Appliance, device: &str, qp_type: QpType) -> End {
    let context = appliance.open(device);
    let pd = context.alloc_pd().unwrap();
    let cq = context.create_cq(64).unwrap();
    let qp = pd.create_qp(QpConfig::new(&cq, &cq).qp_type(qp_type)).unwrap();
    let mr = pd.alloc_mr(8192, Access::LOCAL_WRITE).unwrap();
    End {
        context,
        pd,
        cq,
        qp,
        mr,
    }
}

fn options(gid_index: u8) -> ConnectOptions {
    ConnectOptions {
        gid_index,
        traffic_class: TRAFFIC_CLASS,
        sl: SL,
        hop_limit: HOPS,
        flow_label: LABEL,
        ..ConnectOptions::default()
    }
}

fn vector(to: &End, gid_index: u8) -> AddressVector {
    let ConnectOptions {
        traffic_class,
        sl,
        hop_limit,
        flow_label,
        ..
    } = options(gid_index);
    AddressVector {
        traffic_class,
        sl,
        hop_limit,
        flow_label,
        ..AddressVector::to(to.context.gid(gid_index).unwrap().gid).gid_index(gid_index)
    }
}

fn make_ready([a, b]: &[End; 2], qp_type: QpType, options: &ConnectOptions) {
    if qp_type == QpType::Ud {
        [a, b].into_iter().for_each(|end| end.qp.activate(QKEY).unwrap());
        return;
    }
    let [pa, pb] = [a, b].map(|end| end.qp.endpoint(options).unwrap());
    a.qp.connect(&pb, options).unwrap();
    b.qp.connect(&pa, options).unwrap();
}

/// One SEND.
fn send(from: &End, to: &End, gid_index: u8) {
    let datagram = from.qp.qp_type() == QpType::Ud;
    let ah = datagram.then(|| from.pd.create_ah(&vector(to, gid_index)).unwrap());
    from.qp
        .post(|batch| {
            match &ah {
                Some(ah) => batch.send_to(from.mr.slice(..1000), ah, to.qp.qpn(), QKEY),
                None => batch.send(from.mr.slice(..1000)),
            }
            .signaled();
        })
        .unwrap();
}

fn receive(end: &End) {
    end.qp
        .post_recv(|batch| {
            batch.recv(end.mr.slice(..8192)).wr_id(7);
        })
        .unwrap();
}

fn completes(end: &End) {
    end.cq.wait_vec(1, SOON).unwrap()[0].ok().unwrap();
}

#[test]
fn each_gid_sends_on_its_vlan_with_the_headers_its_address_vector_asks_for() {
    let _turn = Turn::take();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("wire.pcapng");
    let capture = format!("capture: {{ file: {}, limit: 32MiB }}", file.display());
    let ports = [0, 1].map(|n| {
        let host = n + 1;
        let port = PortSetup::ring(n)
            .address(&format!("{{ address: 10.5.0.{host}/24, vlan: 5 }}"))
            .address(&format!("{{ address: \"fd06::{host}/64\", vlan: 6 }}"))
            .with("loopback: wire");
        match n {
            0 => port.with(&capture),
            _ => port,
        }
    });
    let appliance = Appliance::start(&Setup::new(ports));
    let mut expected = Vec::new();
    for qp_type in [QpType::Rc, QpType::Uc, QpType::Ud] {
        let gids = appliance.open("rnic0").gids().unwrap();
        assert_eq!(
            gids.iter().map(|gid| gid.vlan).collect::<Vec<_>>(),
            [None, None, Some(5), Some(6)]
        );
        for gid in gids {
            let ends = ["rnic0", "rnic1"].map(|device| end(&appliance, device, qp_type));
            make_ready(&ends, qp_type, &options(gid.index));
            let [a, b] = &ends;
            for (from, to) in [(a, b), (b, a)] {
                receive(to);
                send(from, to, gid.index);
                completes(from);
                completes(to);
            }
            expected.push((gid.gid, gid.vlan));
            if qp_type != QpType::Ud {
                let told = a.qp.query().unwrap().path;
                assert_eq!(
                    told,
                    Some(vector(b, gid.index)),
                    "a query tells what was asked for"
                );
            }
        }
    }
    appliance.stop();
    let capture = rnic_trace::read(&file).unwrap();
    let mut seen = 0;
    for record in &capture.records {
        let Kind::Roce(frame) = classify(&record.bytes, None) else {
            continue;
        };
        let (net, link) = (frame.net(), frame.link());
        let is_local = |(gid, _): &&(Gid, Option<u16>)| [net.src_gid(), net.dst_gid()].contains(&gid.0);
        let (_, vlan) = expected
            .iter()
            .find(is_local)
            .expect("an address of the first port");
        let tags: Vec<_> = link
            .tags
            .as_slice()
            .iter()
            .map(|tag| (tag.vid(), tag.pcp()))
            .collect();
        assert_eq!(
            tags,
            vlan.map(|vid| (vid, SL)).into_iter().collect::<Vec<_>>(),
            "{frame}"
        );
        // The lower two bits are congestion control's.
        assert_eq!(net.traffic_class() & !3, TRAFFIC_CLASS, "{frame}");
        assert_eq!(net.hop_limit(), HOPS, "{frame}");
        if let Net::V6(ip) = net {
            assert_eq!(ip.flow_label, LABEL, "{frame}");
        }
        assert_eq!(frame.udp_src_port(), udp_source_port(LABEL, 0, 0), "{frame}");
        seen += 1;
    }
    // Four GIDs: of RC two SENDs and two ACKs, of the others two SENDs.
    assert_eq!(seen, 4 * (4 + 2 + 2));
}

#[test]
fn frames_of_another_vlan_are_not_accepted_whoever_they_are_for() {
    let _turn = Turn::take();
    let ports = [(0, 5), (1, 7)].map(|(n, vlan)| {
        let host = n + 1;
        PortSetup::ring(n)
            .address(&format!("{{ address: 10.5.0.{host}/24, vlan: {vlan} }}"))
            .with("loopback: wire")
    });
    let appliance = Appliance::start(&Setup::new(ports));
    for qp_type in [QpType::Rc, QpType::Uc, QpType::Ud] {
        let before = appliance.counter("address_mismatch");
        let ends = ["rnic0", "rnic1"].map(|device| end(&appliance, device, qp_type));
        let options = ConnectOptions {
            timeout: 8,
            retry_cnt: 2,
            ..options(2)
        };
        make_ready(&ends, qp_type, &options);
        let [a, b] = &ends;
        receive(b);
        send(a, b, 2);
        let sent = a.cq.wait_vec(1, SOON).unwrap()[0];
        match qp_type {
            QpType::Rc => assert_eq!(sent.status, Status::RetryExceeded),
            _ => assert_eq!(sent.status, Status::Success, "nobody is told"),
        }
        let dropped = rnic_tests::poll_until(SOON.unwrap(), || {
            (appliance.counter("address_mismatch") > before).then_some(())
        });
        assert!(dropped.is_some(), "nothing was dropped");
        assert!(
            b.cq.wait_vec(1, Some(Duration::from_millis(20)))
                .unwrap()
                .is_empty()
        );
    }
    appliance.stop();
}
