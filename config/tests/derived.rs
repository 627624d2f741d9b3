//! What follows from a configuration: samples, EAL arguments, JSON schema, checks against a machine.

use std::path::Path;

use rnic_config::{
    Config, ConfigError, Loopback, Machine, PollCores, eal_args, eal_args_on, print_schema, samples,
};

fn parse(text: &str) -> Config {
    Config::parse_with(text, "test.yaml", &|_| None).unwrap_or_else(|error| panic!("{error}"))
}

fn port(device: &str) -> String {
    format!("version: 1\nports:\n  - name: rnic0\n    device: {device}\n    addresses: [10.0.0.1/24]\n")
}

#[test]
fn every_sample_is_valid_without_warnings() {
    for sample in samples::ALL {
        let config = Config::parse_with(sample.text, sample.name, &|_| None);
        let config = config.unwrap_or_else(|error| panic!("{error}"));
        assert!(config.warnings().is_empty(), "{:#?}", config.warnings());
        assert_eq!(samples::get(sample.name), Some(sample.text));
    }
    assert_eq!(samples::get("toaster"), None);
}

#[test]
fn the_laptop_sample_wires_two_ports_without_privileges() {
    let text = samples::get("laptop").unwrap();
    let config = parse(text);
    assert_eq!(config.control.socket, Path::new("/tmp/rnicd.sock"));
    assert!(
        config
            .ports
            .iter()
            .all(|port| port.loopback == Loopback::Wire && port.path_mtu() == 4096)
    );
    assert!(config.ports[0].active_capture().is_none());
    let expected = [
        "-l",
        "0",
        "--no-pci",
        "--no-huge",
        "--no-shconf",
        "-m",
        "256",
        "--no-telemetry",
    ];
    assert_eq!(eal_args(&config), expected);

    let demo = |name: &str| match name {
        "RNIC_SOCKET" => Some("/run/demo/rnicd.sock".to_owned()),
        "RNIC_CAPTURE" => Some("/run/demo/session.pcapng".to_owned()),
        _ => None,
    };
    let config = Config::parse_with(text, "laptop.yaml", &demo).unwrap();
    assert_eq!(config.control.socket, Path::new("/run/demo/rnicd.sock"));
    assert_eq!(
        config.ports[0].active_capture().unwrap().file,
        Path::new("/run/demo/session.pcapng")
    );
}

#[test]
fn eal_arguments_follow_from_memory_and_devices() {
    let text = port("{ pci: \"0000:01:10.0\" }")
        + "eal: { memory: hugepages, memory_size: 1GiB, extra_args: [\"--iova-mode=va\"] }\n";
    let expected = [
        "-l",
        "0",
        "--in-memory",
        "-m",
        "1024",
        "--no-telemetry",
        "-a",
        "0000:01:10.0",
        "--iova-mode=va",
    ];
    assert_eq!(eal_args(&parse(&text)), expected);

    let args = eal_args(&parse(&port("{ vdev: \"net_tap0,iface=x\" }")));
    assert_eq!(args.last().map(String::as_str), Some("--vdev=net_tap0,iface=x"));
    assert!(args.contains(&"--no-pci".to_owned()));
    let in_memory = args.contains(&"--in-memory".to_owned());
    assert!(args.contains(&"--no-huge".to_owned()) && !in_memory);
}

#[test]
fn the_eal_core_may_float_over_the_cpus_of_the_daemon() {
    let config = parse(samples::get("laptop").unwrap());
    let machine = Machine {
        cpus: vec![2, 3, 8],
        ..Machine::default()
    };
    let args = eal_args_on(&config, &machine);
    assert_eq!(args[0], "--lcores=0@(2,3,8)");
    assert_eq!(args[1..], eal_args(&config)[2..]);
    assert_eq!(eal_args_on(&config, &Machine::default()), eal_args(&config));
}

#[test]
fn the_path_mtu_is_the_largest_that_fits_the_link() {
    for (mtu, path_mtu) in [
        (352, 256),
        (607, 256),
        (608, 512),
        (1500, 1024),
        (4191, 2048),
        (4192, 4096),
        (9600, 4096),
    ] {
        let config = parse(&(port("{ pci: \"01:00.0\" }") + &format!("    mtu: {mtu}\n")));
        assert_eq!(config.ports[0].path_mtu(), path_mtu, "{mtu}");
    }
    let config = parse(&(port("{ pci: \"01:00.0\" }") + "    mtu: 4200\n"));
    assert_eq!(config.ports[0].buffer_room(), 4416);
}

#[test]
fn addresses_take_the_vlan_of_their_port_unless_they_name_one() {
    let text = "version: 1\nports:\n  - name: rnic0\n    device: { pci: \"01:00.0\" }\n    vlan: 7\n    addresses: [10.0.0.1/24, { address: fd00::1/64, vlan: 9 }]\n";
    let config = parse(text);
    let port = config.port("rnic0".parse().unwrap()).unwrap();
    let vlans: Vec<_> = port
        .addresses
        .iter()
        .map(|address| port.vlan_of(address))
        .collect();
    assert_eq!(vlans, [Some(7), Some(9)]);
}

#[test]
fn the_schema_describes_every_key() {
    let schema: serde_json::Value = serde_json::from_str(&print_schema()).unwrap();
    let definitions = schema["$defs"].as_object().unwrap().values().chain([&schema]);
    for (key, described) in definitions.filter_map(|d| d["properties"].as_object()).flatten() {
        assert!(described["description"].is_string(), "`{key}` has no description");
    }
    assert_eq!(schema["additionalProperties"], false);
    assert_eq!(schema["$defs"]["Port"]["properties"]["mtu"]["maximum"], 9600);
    assert_eq!(schema["$defs"]["Port"]["properties"]["mtu"]["default"], 1500);
}

#[test]
fn a_configuration_written_out_reads_back_the_same() {
    for sample in samples::ALL {
        let written = serde_yaml::to_string(&parse(sample.text)).unwrap();
        let again = serde_yaml::to_string(&parse(&written)).unwrap();
        assert_eq!(written, again);
    }
}

fn invalid(config: &Config, machine: &Machine) -> String {
    match config.check_against(machine).unwrap_err() {
        ConfigError::Invalid(found) => found
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
            .join("\n"),
        error => panic!("{error}"),
    }
}

#[test]
fn poll_cores_must_exist_on_the_machine() {
    let machine = Machine {
        cpus: vec![0, 1, 2, 3, 6],
        ..Machine::default()
    };
    let config = parse(&(port("{ pci: \"01:00.0\" }") + "cores:\n  poll: [1, 5]\n"));
    let shown = invalid(&config, &machine);
    assert!(
        shown.contains("CPU 5 is not there") && shown.contains("0-3, 6"),
        "{shown}"
    );
    assert!(
        shown.contains("test.yaml:7:13") && shown.contains("cores.poll[1]"),
        "{shown}"
    );

    let config = parse(&(port("{ pci: \"01:00.0\" }") + "cores: { count: 2 }\n"));
    assert_eq!(config.cores.poll, PollCores::Auto);
    assert_eq!(machine.poll_cpus(&config), [3, 6]);
    assert!(config.check_against(&machine).unwrap().is_empty());
    let one = Machine {
        cpus: vec![4],
        ..Machine::default()
    };
    assert_eq!(one.poll_cpus(&config), [4, 4]);
    let warnings = config.check_against(&one).unwrap();
    assert!(
        warnings
            .iter()
            .any(|warning| warning.message.contains("2 poll cores share 1 CPUs"))
    );
    assert!(
        warnings
            .iter()
            .any(|warning| warning.message.contains("every CPU polls"))
    );
    assert!(Machine::default().poll_cpus(&config).is_empty());
}

#[test]
fn hugepages_interfaces_and_functions_must_be_there() {
    let config = parse(&(port("{ pci: \"01:00.0\" }") + "eal: { memory: hugepages }\n"));
    let cpus = vec![0, 1];
    let machine = Machine {
        cpus: cpus.clone(),
        free_hugepages: Some("128MiB".parse().unwrap()),
        ..Machine::default()
    };
    assert!(invalid(&config, &machine).contains("512MiB of hugepages are needed, but 128MiB are free"));
    let machine = Machine {
        cpus: cpus.clone(),
        dpdk_functions: Some(vec![]),
        ..Machine::default()
    };
    assert!(invalid(&config, &machine).contains("dpdk-devbind.py --bind=vfio-pci 0000:01:00.0"));

    let config = parse(&port("{ vdev: \"net_af_packet0,iface=veth9\" }"));
    let machine = Machine {
        cpus,
        interfaces: Some(vec!["lo".into()]),
        ..Machine::default()
    };
    let shown = invalid(&config, &machine);
    assert!(
        shown.contains("there is no interface `veth9`") && shown.contains("test.yaml:4:21"),
        "{shown}"
    );
}
