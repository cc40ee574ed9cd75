"""The messages of `inference.GRPCInferenceService`, of gRPC's health and of its reflection, in a
pool of our own.

In a private pool, so that a client library that registers the same names in the same process does
not clash. Field numbers are the protocol's; messages that this server has no use for are left out.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from google.protobuf import descriptor_pb2 as pb
from google.protobuf import descriptor_pool, message_factory

SERVICE, HEALTH = "inference.GRPCInferenceService", "grpc.health.v1.Health"
REFLECTION = "grpc.reflection.v1.ServerReflection"

# message: its fields as "number name type", "*" for repeated, "{}" for a map to that type.
_PARAMETERS = "parameters {}InferParameter"
_DURATIONS = "success fail queue compute_input compute_infer compute_output cache_hit cache_miss"
_MESSAGES: dict[str, list[str]] = {
    "ServerLiveRequest": [],
    "ServerLiveResponse": ["1 live bool"],
    "ServerReadyRequest": [],
    "ServerReadyResponse": ["1 ready bool"],
    "ModelReadyRequest": ["1 name string", "2 version string"],
    "ModelReadyResponse": ["1 ready bool"],
    "ServerMetadataRequest": [],
    "ServerMetadataResponse": ["1 name string", "2 version string", "3 extensions *string"],
    "ModelMetadataRequest": ["1 name string", "2 version string"],
    "TensorMetadata": ["1 name string", "2 datatype string", "3 shape *int64"],
    "ModelMetadataResponse": [
        "1 name string", "2 versions *string", "3 platform string",
        "4 inputs *TensorMetadata", "5 outputs *TensorMetadata",
    ],
    "InferParameter": [
        "1 bool_param bool", "2 int64_param int64", "3 string_param string",
        "4 double_param double", "5 uint64_param uint64",
    ],
    "InferTensorContents": [
        "1 bool_contents *bool", "2 int_contents *int32", "3 int64_contents *int64",
        "4 uint_contents *uint32", "5 uint64_contents *uint64", "6 fp32_contents *float",
        "7 fp64_contents *double", "8 bytes_contents *bytes",
    ],
    "InferTensor": [
        "1 name string", "2 datatype string", "3 shape *int64", f"4 {_PARAMETERS}",
        "5 contents InferTensorContents",
    ],
    "InferRequestedOutput": ["1 name string", f"2 {_PARAMETERS}"],
    "ModelInferRequest": [
        "1 model_name string", "2 model_version string", "3 id string", f"4 {_PARAMETERS}",
        "5 inputs *InferTensor", "6 outputs *InferRequestedOutput", "7 raw_input_contents *bytes",
    ],
    "ModelInferResponse": [
        "1 model_name string", "2 model_version string", "3 id string", f"4 {_PARAMETERS}",
        "5 outputs *InferTensor", "6 raw_output_contents *bytes",
    ],
    "ModelConfigRequest": ["1 name string", "2 version string"],
    "ModelInput": ["1 name string", "2 data_type DataType", "4 dims *int64"],
    "ModelOutput": ["1 name string", "2 data_type DataType", "3 dims *int64"],
    "ModelParameter": ["1 string_value string"],
    "ModelConfig": [
        "1 name string", "2 platform string", "17 backend string", "4 max_batch_size int32",
        "5 input *ModelInput", "6 output *ModelOutput", "14 parameters {}ModelParameter",
    ],
    "ModelConfigResponse": ["1 config ModelConfig"],
    "ModelStatisticsRequest": ["1 name string", "2 version string"],
    "StatisticDuration": ["1 count uint64", "2 ns uint64"],
    "InferStatistics": [
        f"{number} {name} StatisticDuration" for number, name in enumerate(_DURATIONS.split(), 1)
    ],
    "InferBatchStatistics": [
        "1 batch_size uint64", "2 compute_input StatisticDuration",
        "3 compute_infer StatisticDuration", "4 compute_output StatisticDuration",
    ],
    "ModelStatistics": [
        "1 name string", "2 version string", "3 last_inference uint64", "4 inference_count uint64",
        "5 execution_count uint64", "6 inference_stats InferStatistics",
        "7 batch_stats *InferBatchStatistics",
    ],
    "ModelStatisticsResponse": ["1 model_stats *ModelStatistics"],
    "RepositoryIndexRequest": ["1 repository_name string", "2 ready bool"],
    "ModelIndex": ["1 name string", "2 version string", "3 state string", "4 reason string"],
    "RepositoryIndexResponse": ["1 models *ModelIndex"],
    "ModelRepositoryParameter": [
        "1 bool_param bool", "2 int64_param int64", "3 string_param string", "4 bytes_param bytes",
    ],
    "RepositoryModelLoadRequest": [
        "1 repository_name string", "2 model_name string",
        "3 parameters {}ModelRepositoryParameter",
    ],
    "RepositoryModelLoadResponse": [],
    "RepositoryModelUnloadRequest": [
        "1 repository_name string", "2 model_name string",
        "3 parameters {}ModelRepositoryParameter",
    ],
    "RepositoryModelUnloadResponse": [],
    "SystemSharedMemoryStatusRequest": ["1 name string"],
    "SystemSharedMemoryRegion": [
        "1 name string", "2 key string", "3 offset uint64", "4 byte_size uint64",
    ],
    "SystemSharedMemoryStatusResponse": ["1 regions {}SystemSharedMemoryRegion"],
    "SystemSharedMemoryRegisterRequest": [
        "1 name string", "2 key string", "3 offset uint64", "4 byte_size uint64",
    ],
    "SystemSharedMemoryRegisterResponse": [],
    "SystemSharedMemoryUnregisterRequest": ["1 name string"],
    "SystemSharedMemoryUnregisterResponse": [],
    "CudaSharedMemoryStatusRequest": ["1 name string"],
    "CudaSharedMemoryStatusResponse": [],
    "CudaSharedMemoryRegisterRequest": ["1 name string"],
    "CudaSharedMemoryRegisterResponse": [],
    "CudaSharedMemoryUnregisterRequest": ["1 name string"],
    "CudaSharedMemoryUnregisterResponse": [],
}  # fmt: skip
_REFLECTION: dict[str, list[str]] = {
    "ServerReflectionRequest": [
        "1 host string", "3 file_by_filename string", "4 file_containing_symbol string",
        "5 file_containing_extension bytes", "6 all_extension_numbers_of_type string",
        "7 list_services string",
    ],
    "FileDescriptorResponse": ["1 file_descriptor_proto *bytes"],
    "ServiceResponse": ["1 name string"],
    "ListServiceResponse": ["1 service *ServiceResponse"],
    "ErrorResponse": ["1 error_code int32", "2 error_message string"],
    "ServerReflectionResponse": [
        "1 valid_host string", "2 original_request ServerReflectionRequest",
        "4 file_descriptor_response FileDescriptorResponse",
        "6 list_services_response ListServiceResponse", "7 error_response ErrorResponse",
    ],
}  # fmt: skip
_STATUSES = ("UNKNOWN", "SERVING", "NOT_SERVING", "SERVICE_UNKNOWN")
_ONE_OF = "InferParameter"  # whose fields exclude each other
# TYPE_INVALID is 0, BF16 the last.
_DATA_TYPES = (
    "INVALID", "BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64",
    "FP16", "FP32", "FP64", "STRING", "BF16",
)  # fmt: skip
METHODS = (
    "ServerLive", "ServerReady", "ModelReady", "ServerMetadata", "ModelMetadata", "ModelInfer",
    "ModelConfig", "ModelStatistics", "RepositoryIndex", "RepositoryModelLoad",
    "RepositoryModelUnload",
    "SystemSharedMemoryStatus", "SystemSharedMemoryRegister", "SystemSharedMemoryUnregister",
    "CudaSharedMemoryStatus", "CudaSharedMemoryRegister", "CudaSharedMemoryUnregister",
)  # fmt: skip

_Field = pb.FieldDescriptorProto
_SCALARS = {name: getattr(_Field, f"TYPE_{name.upper()}") for name in (
    "bool", "string", "bytes", "int32", "int64", "uint32", "uint64", "float", "double",
)}  # fmt: skip


@cache
def message(name: str) -> Any:
    """The class of a message of any of the services."""
    package = "inference"
    if name.startswith("HealthCheck"):
        package = "grpc.health.v1"
    elif name in _REFLECTION:
        package = "grpc.reflection.v1"
    return _classes()[f"{package}.{name}"]


def described(symbol: str) -> bytes | None:
    """The file that describes a service, a method or a message, or that has this name, as bytes of
    a FileDescriptorProto; None: nothing does."""
    for file in _files():
        of_file = symbol == file.name or symbol.startswith(f"{file.package}.")
        if of_file and (symbol == file.name or _names(file, symbol[len(file.package) + 1 :])):
            return bytes(file.SerializeToString())
    return None


def data_type(name: str) -> int:
    """The number of a datatype in `ModelConfig`."""
    return _DATA_TYPES.index("STRING" if name == "BYTES" else name)


@cache
def _classes() -> dict[str, Any]:
    """By full name, those of parts too, all kept: the library makes a part's class when it meets
    one and leaves it to the collector, and a thread that reads a part of a class which another is
    collecting ends the process (protobuf 6.33)."""
    pool = descriptor_pool.DescriptorPool()
    left = list[Any]()
    for file in _files():
        pool.Add(file)
        left += pool.FindFileByName(file.name).message_types_by_name.values()
    classes = dict[str, Any]()
    while left:
        descriptor = left.pop()
        classes[descriptor.full_name] = message_factory.GetMessageClass(descriptor)
        left += descriptor.nested_types
    return classes


@cache
def _files() -> tuple[pb.FileDescriptorProto, ...]:
    inference = pb.FileDescriptorProto(name="inference.proto", package="inference", syntax="proto3")
    types = inference.enum_type.add(name="DataType")
    for number, name in enumerate(_DATA_TYPES):
        types.value.add(name=f"TYPE_{name}", number=number)
    for name, fields in _MESSAGES.items():
        _describe(inference.message_type.add(name=name), fields)
    service = inference.service.add(name=SERVICE.rpartition(".")[2])
    for name in METHODS:
        _add_method(service, "inference", name, f"{name}Request", f"{name}Response")
    health = pb.FileDescriptorProto(name="health.proto", package="grpc.health.v1", syntax="proto3")
    _describe(health.message_type.add(name="HealthCheckRequest"), ["1 service string"])
    answer = health.message_type.add(name="HealthCheckResponse")
    statuses = answer.enum_type.add(name="ServingStatus")
    for number, name in enumerate(_STATUSES):
        statuses.value.add(name=name, number=number)
    answer.field.add(
        name="status", number=1, label=_Field.LABEL_OPTIONAL, type=_Field.TYPE_ENUM,
        type_name=".grpc.health.v1.HealthCheckResponse.ServingStatus",
    )  # fmt: skip
    service = health.service.add(name="Health")
    for name in ("Check", "Watch"):
        _add_method(service, health.package, name, "HealthCheckRequest", "HealthCheckResponse")
    service.method[1].server_streaming = True
    reflection = pb.FileDescriptorProto(
        name="reflection.proto", package="grpc.reflection.v1", syntax="proto3"
    )
    for name, fields in _REFLECTION.items():
        _describe(reflection.message_type.add(name=name), fields, reflection.package)
    return inference, health, reflection


def _add_method(service: Any, package: str, name: str, takes: str, gives: str) -> None:
    service.method.add(
        name=name, input_type=f".{package}.{takes}", output_type=f".{package}.{gives}"
    )


def _names(file: pb.FileDescriptorProto, symbol: str) -> bool:
    """Is it a service, a method of one, or a message (or what is in one) of this file?"""
    first, _, rest = symbol.partition(".")
    for service in file.service:
        if first == service.name:
            return not rest or rest in [method.name for method in service.method]
    return first in [m.name for m in (*file.message_type, *file.enum_type)]


def _describe(message: pb.DescriptorProto, fields: list[str], package: str = "inference") -> None:
    if message.name == _ONE_OF:
        message.oneof_decl.add(name="parameter_choice")
    for text in fields:
        number, name, kind = text.split()
        field = message.field.add(name=name, number=int(number), label=_Field.LABEL_OPTIONAL)
        if message.name == _ONE_OF:
            field.oneof_index = 0
        if kind.startswith("{}"):
            entry = "".join(part.title() for part in name.split("_")) + "Entry"
            nested = message.nested_type.add(name=entry)
            nested.options.map_entry = True
            _describe(nested, ["1 key string", f"2 value {kind[2:]}"])
            kind = f"*{message.name}.{entry}"
        if kind.startswith("*"):
            field.label, kind = _Field.LABEL_REPEATED, kind[1:]
        if kind in _SCALARS:
            field.type = _SCALARS[kind]
        else:
            field.type = _Field.TYPE_ENUM if kind == "DataType" else _Field.TYPE_MESSAGE
            field.type_name = f".{package}.{kind}"
