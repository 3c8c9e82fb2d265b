package com.example.shop;

import jakarta.servlet.http.HttpServletResponse;
import java.io.IOException;
import java.io.InputStream;
import java.io.UncheckedIOException;
import java.nio.charset.StandardCharsets;
import org.springframework.http.HttpStatus;
import org.springframework.http.MediaType;
import org.springframework.http.ResponseEntity;
import org.springframework.web.bind.annotation.GetMapping;
import org.springframework.web.bind.annotation.ModelAttribute;
import org.springframework.web.bind.annotation.RequestMapping;
import org.springframework.web.bind.annotation.RequestMethod;
import org.springframework.web.bind.annotation.RequestParam;
import org.springframework.web.bind.annotation.RestController;
import org.springframework.web.server.ResponseStatusException;
import org.springframework.web.servlet.mvc.method.annotation.StreamingResponseBody;

/** The pages. Each says which release it comes from, in the text and in X-App. */
@RestController
public class ShopController {

    private final ShopProperties shop;

    ShopController(ShopProperties shop) {
        this.shop = shop;
    }

    @ModelAttribute
    void sign(HttpServletResponse response) {
        response.setHeader("X-App", shop.release());
        if (shop.failing()) {
            throw new ResponseStatusException(HttpStatus.INTERNAL_SERVER_ERROR, shop.release() + " is set to fail");
        }
    }

    @GetMapping(path = "/", produces = MediaType.TEXT_PLAIN_VALUE)
    String hello() {
        return shop.release() + "\n";
    }

    @RequestMapping(
            path = "/slow",
            method = {RequestMethod.GET, RequestMethod.POST},
            produces = MediaType.TEXT_PLAIN_VALUE)
    String slow(@RequestParam(defaultValue = "1000") long ms, InputStream body) throws IOException, InterruptedException {
        body.transferTo(java.io.OutputStream.nullOutputStream());
        Thread.sleep(ms);
        return shop.release() + " after " + ms + " ms\n";
    }

    /** An upload of any size: it is counted, not kept. */
    @RequestMapping(
            path = {"/", "/upload"},
            method = {RequestMethod.POST, RequestMethod.PUT},
            produces = MediaType.TEXT_PLAIN_VALUE)
    String upload(InputStream body) throws IOException {
        long bytes = body.transferTo(java.io.OutputStream.nullOutputStream());
        return shop.release() + " received " + bytes + " bytes\n";
    }

    /** Server-sent events, until {@code count} or until the client goes. */
    @GetMapping(path = "/events", produces = MediaType.TEXT_EVENT_STREAM_VALUE)
    ResponseEntity<StreamingResponseBody> events(
            @RequestParam(name = "every_ms", defaultValue = "100") long everyMs,
            @RequestParam(defaultValue = "9223372036854775807") long count) {
        StreamingResponseBody events = out -> {
            try {
                for (long i = 0; i < count; i++) {
                    Thread.sleep(everyMs);
                    out.write(("data: " + shop.name() + " " + i + "\n\n").getBytes(StandardCharsets.UTF_8));
                    out.flush();
                }
            } catch (InterruptedException e) {
                throw new UncheckedIOException(new IOException("stopped", e));
            }
        };
        return ResponseEntity.ok().contentType(MediaType.TEXT_EVENT_STREAM).body(events);
    }
}
