//! The proxy inside a program: `cargo run --example embed [proxy.toml]`. README.md shows this file.

use mcp_proxy::{Options, Proxy, ProxyConfig};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let file = std::env::args().nth(1).unwrap_or("proxy.toml".to_owned());
    let config = ProxyConfig::load(file.as_ref())?; // or ProxyConfig::parse(text)
    let proxy = Proxy::start(config, Options::default())?;
    let handle = proxy.handle(); // may be cloned and sent to other threads
    println!("serving at {}", handle.url());
    for backend in handle.stats().backends {
        println!("{}: {:?}", backend.name, backend.state);
    }
    handle.wait()?; // until another thread calls handle.shutdown()
    Ok(())
}
