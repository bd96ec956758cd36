//! The OTLP trace collector: clients send their spans here.
use super::Traces;
use api::trace::trace_service_server::TraceService;
use api::trace::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use std::sync::Arc;
use tonic::{Request, Response, Status};

/// The service.
pub(in crate::daemon) struct Collector(pub(in crate::daemon) Arc<Traces>);

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        self.0.take(request.into_inner().resource_spans);
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}
