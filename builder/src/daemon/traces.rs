//! The OTLP trace collector: clients send their spans here. They are taken and counted, not kept.
use api::trace::trace_service_server::TraceService;
use api::trace::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use tonic::{Request, Response, Status};

/// The service.
pub(super) struct TraceSink;

#[tonic::async_trait]
impl TraceService for TraceSink {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        tracing::debug!(
            resources = request.get_ref().resource_spans.len(),
            "a client sent its spans"
        );
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}
