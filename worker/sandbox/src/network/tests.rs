//! Networks as root of this machine; skipped where that is not what we are.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    os::fd::AsFd,
    time::Duration,
};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::*;

/// One spawner for all tests here.
fn spawner() -> &'static Spawner {
    static SPAWNER: std::sync::OnceLock<Spawner> = std::sync::OnceLock::new();
    SPAWNER.get_or_init(|| Spawner::start().expect("a spawner"))
}

/// Runs `work` on a thread that is in the namespace of `lease`.
fn inside<T: Send + 'static>(lease: &Lease, work: impl FnOnce() -> T + Send + 'static) -> T {
    let namespace = lease.as_fd().try_clone_to_owned().expect("a descriptor");
    std::thread::spawn(move || {
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).expect("entered");
        work()
    })
    .join()
    .expect("no panic")
}

/// The networks, or none where the machine does not let us.
fn networks() -> Option<Networks> {
    if !is_root_of_machine() {
        return None;
    }
    let networks = Networks::new();
    match networks.lease(spawner()) {
        Ok(_) => Some(networks),
        Err(error) => {
            assert!(matches!(error, Error::Network { .. }), "{error}");
            None
        }
    }
}

fn has_link(name: &str) -> bool {
    link::index(&mut Netlink::route().expect("a socket"), name).is_ok()
}

#[test]
fn a_step_reaches_the_host_and_not_its_neighbour() {
    let Some(networks) = networks() else { return };
    let (one, two) = (
        networks.lease(spawner()).expect("leased"),
        networks.lease(spawner()).expect("leased"),
    );
    assert_ne!(one.address(), two.address());
    let gateway = one.gateway();
    let listener = TcpListener::bind((gateway, 0)).expect("the bridge's address is ours");
    let to: SocketAddr = listener.local_addr().expect("bound");
    let answer = std::thread::spawn(move || {
        let (mut stream, from) = listener.accept().expect("a guest");
        stream.write_all(b"hello").expect("written");
        from.ip()
    });
    let heard = inside(&one, move || {
        let mut text = String::new();
        let stream = TcpStream::connect_timeout(&to, Duration::from_secs(5));
        stream
            .and_then(|mut stream| stream.read_to_string(&mut text))
            .map(|_| text)
    });
    assert_eq!(heard.expect("reached"), "hello");
    assert_eq!(
        answer.join().expect("no panic"),
        std::net::IpAddr::V4(one.address())
    );
    let target = SocketAddr::from((two.address(), 9));
    let neighbour = inside(&one, move || {
        TcpStream::connect_timeout(&target, Duration::from_millis(300)).map(drop)
    });
    let error = neighbour.expect_err("ports are isolated");
    assert_ne!(
        error.kind(),
        io::ErrorKind::ConnectionRefused,
        "the neighbour answered"
    );
    let interfaces = inside(&two, || {
        std::fs::read_to_string("/proc/thread-self/net/dev").expect("readable")
    });
    assert_eq!(interfaces.lines().skip(2).count(), 2, "lo and eth0: {interfaces}");
}

#[test]
fn nothing_is_left_of_a_lease() {
    let Some(networks) = networks() else { return };
    let lease = networks.lease(spawner()).expect("leased");
    let [.., third, fourth] = lease.address().octets();
    let outer = format!("bld{third:02x}{fourth:02x}");
    assert!(has_link(&outer));
    drop(lease);
    networks.settle();
    assert!(!has_link(&outer));
    // The address is free: another process may lock it.
    let lock = File::create(format!("/run/builder/network/{third}.{fourth}")).expect("a file");
    assert!(lock.try_lock().is_ok());
}

#[test]
#[ignore = "prints times; run by hand"]
fn how_long_it_takes() {
    let Some(networks) = networks() else { return };
    for _ in 0..5 {
        let begin = std::time::Instant::now();
        let lease = networks.lease(spawner()).expect("leased");
        let made = begin.elapsed();
        drop(lease);
        std::io::stderr()
            .write_all(format!("lease {made:?} drop {:?}\n", begin.elapsed() - made).as_bytes())
            .expect("written");
    }
}
