pub struct Server;
impl Server {
    pub async fn start_own() -> Option<Self> {
        None
    }
    pub fn url(&self) -> String {
        String::new()
    }
    pub async fn kill9(&mut self) {}
    pub async fn start(&mut self) {}
}
