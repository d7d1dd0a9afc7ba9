//! What this machine says of its system.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read as _;
use std::net::IpAddr;
use std::path::Path;

use agent_core::SystemFacts;
use agent_protocol::Interface;
use nix::ifaddrs::getifaddrs;
use nix::net::if_::InterfaceFlags;

/// The longest file that is read for it, in bytes.
const FILE_BYTES_MAX: u64 = 64 * 1024;

/// Collects it anew: names and addresses change.
pub(crate) fn facts() -> SystemFacts {
    let system = rustix::system::uname();
    SystemFacts {
        agent_version: env!("CARGO_PKG_VERSION").to_owned(),
        computer_dns_name: computer_name(),
        os_version: os_version(&read(Path::new("/etc/os-release"))),
        os_build: system.release().to_string_lossy().into_owned(),
        os_architecture: system.machine().to_string_lossy().into_owned(),
        interfaces: interfaces(),
    }
}

/// The fully qualified name where `/etc/hosts` has one, else the host name.
pub(crate) fn computer_name() -> String {
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    qualified(&host, &read(Path::new("/etc/hosts"))).unwrap_or(host)
}

fn read(path: &Path) -> String {
    let mut bytes = Vec::new();
    match File::open(path).and_then(|file| file.take(FILE_BYTES_MAX).read_to_end(&mut bytes)) {
        Ok(_) => String::from_utf8_lossy(&bytes).into_owned(),
        // A machine without the file says less of itself.
        Err(_) => String::new(),
    }
}

/// The name that begins with the host's and a dot, on a line of `hosts(5)` that holds the host's name too.
fn qualified(host: &str, hosts: &str) -> Option<String> {
    let names = |line: &str| -> Option<String> {
        let line = line.split('#').next()?;
        let names: Vec<_> = line.split_whitespace().skip(1).collect();
        let long = |name: &&&str| {
            name.strip_prefix(host).is_some_and(|rest| rest.len() > 1 && rest.starts_with('.'))
        };
        names.contains(&host).then(|| names.iter().find(long).map(|name| (*name).to_owned()))?
    };
    hosts.lines().find_map(names)
}

/// Distribution and version of `os-release(5)`: `Debian 12`.
fn os_version(release: &str) -> String {
    let field = |name: &str| {
        let value = release.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='))?;
        Some(value.trim().trim_matches(['"', '\'']).to_owned())
    };
    let name = field("NAME").unwrap_or_else(|| "Linux".to_owned());
    let name = name.trim_end_matches(" GNU/Linux");
    field("VERSION_ID").map_or_else(|| name.to_owned(), |version| format!("{name} {version}"))
}

fn interfaces() -> Vec<Interface> {
    let Ok(addresses) = getifaddrs() else { return Vec::new() };
    let addresses: Vec<_> = addresses.collect();
    let macs: BTreeMap<_, _> = addresses
        .iter()
        .filter_map(|entry| Some((&entry.interface_name, entry.address?.as_link_addr()?.addr()?)))
        .filter(|(_, mac)| *mac != [0; 6])
        .collect();
    let interface = |entry: &nix::ifaddrs::InterfaceAddress| {
        let address = entry.address?;
        let v4 = address.as_sockaddr_in().map(|address| IpAddr::V4(address.ip()));
        let address = v4.or_else(|| address.as_sockaddr_in6().map(|address| IpAddr::V6(address.ip())))?;
        Some(Interface {
            address,
            mac: macs.get(&entry.interface_name).map(hex::encode_upper),
            up: entry.flags.contains(InterfaceFlags::IFF_UP),
        })
    };
    addresses.iter().filter_map(interface).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_versions() {
        let hosts = "127.0.0.1 localhost\n10.0.0.1 lab-042.example.org lab-042 # lab\n10.0.0.2 other.example.org other";
        for (host, expected) in [
            ("lab-042", Some("lab-042.example.org")),
            ("localhost", None),
            ("lab", None),
            ("other", Some("other.example.org")),
            ("", None),
        ] {
            assert_eq!(qualified(host, hosts).as_deref(), expected, "{host}");
        }
        assert_eq!(os_version("NAME=\"Debian GNU/Linux\"\nVERSION_ID=\"12\"\n"), "Debian 12");
        assert_eq!(os_version("NAME='Rocky Linux'\nVERSION_ID=9.4\n"), "Rocky Linux 9.4");
        assert_eq!(os_version("NAME=Arch\n"), "Arch");
        assert_eq!(os_version(""), "Linux");
    }

    #[test]
    fn this_machine_has_a_name_a_kernel_and_a_loopback_address() {
        let facts = facts();
        assert!(!facts.computer_dns_name.is_empty() && facts.os_build.contains('.'));
        assert!(facts.interfaces.iter().any(|interface| interface.address.is_loopback() && interface.up));
    }
}
